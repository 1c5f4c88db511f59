"""The verbs ``train`` and ``finetune``: train a model; train pretrained weights on a folder of your own images."""

import argparse
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from ..models.config import CONFIGS
from ..training.checkpoint import FOLDER, find_checkpoint
from ..training.data import Splits, open_data
from ..training.derived_options import as_flags, chain, derive_from_data, derive_from_weights, finetune_stages
from ..training.loop import train
from ..training.options import FIELDS, GROUPS, TrainOptions, read_recipe
from ..training.shrinking import CACHE, keep_shrunk
from ..training.summary import describe_data, describe_run, estimate_seconds, summarise_result
from ..utils.distributed import Ranks, connect
from ..utils.text import counted, duration
from ..weights.catalog import DEFAULT_MODEL, DEFAULT_TAG, PACKAGED_TAG
from ..weights.load import Loaded, load_weights
from .arguments import OPTIONS, Verbs, prepare_process, say
from .output import show

_DATA_OPTIONS = ("data", "val_fraction", "seed", "skip_bad_images", "cache_size")
_FROM_DATA = ("batch_size", "lr", "epochs", "min_scale", "cache_size")
_FROM_WEIGHTS = ("size", "crop_ratio", "mean", "std")
_METAVARS = {int: "N", float: "X", str: "TEXT"}


def add_verb(verbs: Verbs) -> None:
    """Add the verbs."""
    parser = verbs.add_parser("train", help="train a model, on one process or under torchrun")
    parser.description = (
        "Train a model. The defaults are the authors' recipe for ImageNet; for fewer than 50,000 images, or with "
        "--weights, others are derived and printed. For several processes or machines, start the same command with "
        "torchrun: torchrun --nproc-per-node 2 -m hardnet train ..."
    )
    add_train_arguments(parser)
    parser.set_defaults(run=_train)

    parser = verbs.add_parser("finetune", help="train pretrained weights on your own pictures, in folders by class")
    parser.description = (
        "Train pretrained weights on your own pictures: first the new head alone, then all layers, with smaller rates "
        f"for earlier ones. OUTPUT/{FOLDER} holds the result. Without --model and --weights, training starts from the "
        f"packaged weights, without a download; with --model alone, from its {DEFAULT_TAG}, which is downloaded."
    )
    add_train_arguments(parser, finetuning=True)
    parser.set_defaults(run=partial(_train, finetuning=True))


def add_train_arguments(parser: argparse.ArgumentParser, *, finetuning: bool = False) -> None:
    """Add DATA, and a flag for every other field of TrainOptions.

    Flags that are not given are absent from the namespace, so that the defaults are those of TrainOptions.
    """
    parser.usage = f"{parser.prog} DATA --output FOLDER [options]"
    types = get_type_hints(TrainOptions)
    group: Any = parser
    for name in FIELDS:
        if name in GROUPS:
            group = parser.add_argument_group(GROUPS[name])
        if name == "data":
            group.add_argument("data", metavar="DATA", help=FIELDS[name].metadata["help"])
            if not finetuning:
                text = "options from a file: imagenet, fashion-mnist-39ds, or a path of a JSON file; flags override it"
                group.add_argument("--recipe", help=text)
        elif not (finetuning and name == "freeze"):
            _add_option(group, name, types[name], finetuning)
    parser.set_defaults(recipe=None)
    group.add_argument("--threads", **OPTIONS["--threads"])


def _add_option(group: Any, name: str, kind: Any, finetuning: bool) -> None:
    field, flag = FIELDS[name], "--" + name.replace("_", "-")
    default = _default(name, finetuning)
    text = field.metadata["help"] + (f" (default: {default})" if default else "")
    common: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
    elif name in ("mean", "std"):
        group.add_argument(flag, type=float, nargs=3, metavar=("R", "G", "B"), **common)
    else:
        choices = sorted(CONFIGS) if name == "model" else field.metadata["choices"] or None
        basic, metavar = next(pair for pair in _METAVARS.items() if kind in (pair[0], pair[0] | None))
        common |= {"choices": choices} if choices else {"metavar": metavar}
        group.add_argument(flag, type=basic, required=name == "output", **common)


def _default(name: str, finetuning: bool) -> str:
    """Return the default of an option of a verb as text; empty if the option is required or has none."""
    value: Any = FIELDS[name].default
    if finetuning:
        value = {"weights": "that of --model; without it, the packaged one", **finetune_stages(1)[1]}.get(name, value)
    if isinstance(value, bool):
        value = "on" if value else "off"
    if name in _FROM_DATA:
        return "derived from the data" if finetuning else f"{value}; for fewer than 50,000 images derived from the data"
    if name in _FROM_WEIGHTS:
        return "of the weights" if finetuning else f"{value}; with --weights, of the weights"
    return "" if name == "output" or value is None else str(value)


def _train(arguments: argparse.Namespace, *, finetuning: bool = False) -> int:
    """Train as the arguments say, and print what it starts from, a line per epoch and the result."""
    flags = {name: value for name, value in vars(arguments).items() if name in FIELDS}
    if finetuning and "weights" not in flags:
        flags["weights"] = DEFAULT_TAG if "model" in flags else PACKAGED_TAG
        if "model" not in flags:
            note = "weights for garments, which need no download; for photographs, --model hardnet39ds is better"
            say(f"starting from {DEFAULT_MODEL} {PACKAGED_TAG}: {note} (a download)")
    prepare_process(arguments)
    with connect(flags.get("device", TrainOptions.device)) as ranks:
        runs, data, loaded, derived = _prepare(flags, arguments.recipe, finetuning, ranks)
        if ranks.first:
            lines = describe_data(data)
            if derived:
                lines.append(f"options for these data and weights: {as_flags(derived)}")
            seconds = sum(estimate_seconds(run, data, ranks) for run in runs)
            lines += [describe_run(runs[0], ranks), f"this will take about {duration(seconds)}"]
            show("\n".join(lines))
        for number, run in enumerate(runs, 1):
            if ranks.first and len(runs) > 1:
                part = ", of the head alone" if run.freeze else ""
                show(f"stage {number} of {len(runs)}: {counted(run.epochs, 'epoch')}{part}")
            shared = all(getattr(run, name) == getattr(runs[0], name) for name in _DATA_OPTIONS)
            initial = loaded if number == 1 else None
            outcome = train(run, partial(_print_epoch, run), data if shared else None, initial)
            if not outcome.finished:
                for signal_number in (signal.SIGTERM, signal.SIGINT):  # the process is about to end
                    signal.signal(signal_number, signal.SIG_IGN)
                if ranks.first:
                    epochs = counted(outcome.epochs, "complete epoch")
                    show(f"stopped by a signal after {epochs}, the position is saved: go on with --resume auto")
                return 0
        data = data if shared else open_data(runs[-1], ranks)
        lines = summarise_result(runs[-1], data, ranks)
        if ranks.first:
            show("\n".join(lines))
            shutil.rmtree(Path(runs[-1].output).expanduser() / CACHE, ignore_errors=True)
    return 0


def _prepare(
    flags: dict[str, Any], recipe: str | None, finetuning: bool, ranks: Ranks
) -> tuple[list[TrainOptions], Splits, Loaded | None, dict[str, Any]]:
    """Return the runs that follow each other, their data, the initial weights, and the options that were derived.

    What needs no data is checked before the data set is opened.
    """

    def plan(derived: dict[str, Any]) -> list[TrainOptions]:
        if recipe is not None:
            return chain(read_recipe(recipe), flags)
        if not finetuning:
            return chain([derived], flags)
        epochs = flags.get("epochs") or derived.get("epochs", TrainOptions.epochs)
        values = {name: value for name, value in flags.items() if name != "epochs"}
        return chain([derived | stage for stage in finetune_stages(epochs)], values)

    runs = plan({})
    for run in runs:
        find_checkpoint(run)
    loaded, derived = None, {}
    if runs[0].weights is not None:
        model = flags.get("model") if recipe is None else runs[0].model
        loaded = load_weights(runs[0].weights, model=model, progress=ranks.first)
    data = open_data(runs[0], ranks)
    if recipe is None:
        derived = derive_from_weights(loaded) if loaded else {}
        size = flags.get("size") or derived.get("size", TrainOptions.size)
        derived |= derive_from_data(data, size, ranks.size, pretrained=loaded is not None)
        derived = {
            name: value for name, value in derived.items() if name not in flags and value != FIELDS[name].default
        }
        runs = plan(derived)
    return runs, keep_shrunk(data, Path(runs[-1].output).expanduser(), runs[0].cache_size), loaded, derived


def _print_epoch(run: TrainOptions, numbers: dict[str, Any]) -> None:
    speed = numbers["images_per_second"]
    parts = [
        f"epoch {numbers['epoch']} of {run.epochs}",
        f"size {numbers['size']}",
        f"loss {numbers['train_loss']:.4f}",
        f"{speed:.0f} images/s" if speed >= 10 else f"{speed:.2g} images/s",
    ]
    for prefix, name in (("val", "validation"), ("ema_val", "averaged")):
        if f"{prefix}_top1_error" in numbers:
            name += f" top-1 error {numbers[f'{prefix}_top1_error']:.2f}"
            if f"{prefix}_top5_error" in numbers:
                name += f", top-5 {numbers[f'{prefix}_top5_error']:.2f}"
            parts.append(name)
    if numbers["skipped_images"]:
        parts.append(f"{counted(numbers['skipped_images'], 'bad image')} skipped")
    show(", ".join(parts))
