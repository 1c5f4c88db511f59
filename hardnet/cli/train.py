"""The verb ``train``: train a model."""

from __future__ import annotations

import argparse
import functools
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from ..models.config import CONFIGS
from ..training.derived_options import as_flags, chain, derive_from_data, derive_from_weights, finetune_stages
from ..training.options import FIELDS, TrainOptions, read_recipe
from ..utils.text import counted, duration
from .arguments import Verbs, add_threads, prepare_process
from .output import show

if TYPE_CHECKING:
    from ..training.data import Splits
    from ..utils.distributed import Ranks
    from ..weights.load import Loaded

_GROUPS = {
    "what is set most often": (
        "data", "output", "model", "weights", "epochs", "patience", "batch_size", "lr", "size", "device", "resume",
    ),
    "data": (
        "hold_out", "val_fraction", "skip_bad_images", "cache_size", "workers", "crop_ratio", "mean", "std",
        "class_weights", "eval_every",
    ),
    "augmentation": (
        "crop", "min_scale", "pad", "flip", "erase", "erase_max", "auto_augment", "mixup", "cutmix", "size_schedule",
    ),
    "loss and optimiser": (
        "label_smoothing", "teacher", "teacher_share", "temperature", "optimizer", "lr_batch", "layer_decay", "min_lr",
        "warmup", "momentum", "weight_decay", "norm_decay", "clip", "accumulate", "ema", "drop_rate", "freeze",
        "freeze_bn",
    ),
    "run": ("seed", "amp", "compile", "save_every", "save_pretrained", "tensorboard"),
}  # fmt: skip
_DATA_OPTIONS = ("data", "hold_out", "val_fraction", "seed", "skip_bad_images", "cache_size")
_FROM_DATA = ("batch_size", "lr", "epochs", "min_scale", "cache_size")
_FROM_WEIGHTS = ("size", "crop_ratio", "mean", "std")


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("train", help="train a model, on one process or under torchrun")
    parser.description = (
        "Train a model. The defaults are the authors' recipe for ImageNet; for fewer than 50,000 images, or with "
        "--weights, others are derived and printed. For several processes or machines, start the same command with "
        "torchrun: torchrun --nproc-per-node 2 -m hardnet train ..."
    )
    add_train_arguments(parser)
    parser.set_defaults(run=run_train)


def add_train_arguments(parser: argparse.ArgumentParser, *, finetuning: bool = False) -> None:
    """Add the arguments of ``train`` or of ``finetune``: DATA, and a flag for every other field of TrainOptions.

    Flags that are not given are absent from the namespace, so that the defaults are those of TrainOptions.
    """
    parser.usage = f"{parser.prog} DATA --output FOLDER [options]"
    types = get_type_hints(TrainOptions)
    for title, names in _GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names:
            if name == "data":
                group.add_argument("data", metavar="DATA", help=FIELDS[name].metadata["help"])
            elif not (finetuning and name == "freeze"):
                _add_option(group, name, types[name], finetuning)
        if names[0] == "data" and not finetuning:
            text = "options from a file: imagenet, fashion-mnist-39ds, or the path of a JSON file; flags override it"
            group.add_argument("--recipe", help=text)
    parser.set_defaults(recipe=None)
    add_threads(group)


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
        basic = next(basic for basic in (int, float, str) if kind in (basic, basic | None))
        metavar = None if choices else {int: "N", float: "X", str: "TEXT"}[basic]
        group.add_argument(flag, type=basic, choices=choices, required=name == "output", metavar=metavar, **common)


def _default(name: str, finetuning: bool) -> str:
    """Return the default of an option of a verb as text; empty if the option is required or off."""
    value: Any = {"weights": "that of --model; without it, the packaged one", **finetune_stages(1)[1]}.get(name)
    if not finetuning or value is None or name == "epochs":
        value = FIELDS[name].default
    origins = {**dict.fromkeys(_FROM_DATA, "derived from the data"), **dict.fromkeys(_FROM_WEIGHTS, "of the weights")}
    if finetuning and name in origins:
        return origins[name]
    if name in ("mean", "std"):
        value = "of the data set"
    if name == "output" or value in (None, ""):
        return ""
    shown = {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    if name in _FROM_DATA:
        return f"{shown}; for fewer than 50,000 images {origins[name]}"
    return f"{shown}; with --weights, {origins[name]}" if name in _FROM_WEIGHTS else shown


def run_train(arguments: argparse.Namespace, *, finetuning: bool = False) -> int:
    """Train as the arguments say, and print what it starts from, a line per epoch and the result.

    Args:
        arguments: of :func:`add_train_arguments`.
        finetuning: train the head first, then all.

    Returns:
        The exit status.
    """
    from ..training.data import open_data
    from ..training.loop import train
    from ..training.shrinking import CACHE
    from ..training.summary import summarise_result
    from ..utils.distributed import connect

    given = {name: value for name, value in vars(arguments).items() if name in FIELDS}
    prepare_process(arguments)
    with connect(given.get("device", TrainOptions.device)) as ranks:
        runs, data, loaded, derived = _prepare(given, arguments.recipe, finetuning, ranks)
        for number, run in enumerate(runs, 1):
            if ranks.first and number > 1:
                _print_stage(runs, number)
            shared = all(getattr(run, name) == getattr(runs[0], name) for name in _DATA_OPTIONS)
            outcome = train(
                run,
                functools.partial(_print_epoch, run),
                data if shared else None,
                loaded if number == 1 else None,
                functools.partial(_print_start, runs, data, derived, ranks) if number == 1 else None,
            )
            if not outcome.finished:
                for signal_number in (signal.SIGTERM, signal.SIGINT):  # the process is about to end
                    signal.signal(signal_number, signal.SIG_IGN)
                if ranks.first:
                    done = counted(outcome.epochs, "complete epoch")
                    show(f"stopped by a signal after {done}, the position is saved: go on with --resume auto")
                return 0
        data = data if shared else open_data(runs[-1], ranks)
        lines = summarise_result(runs[-1], data, ranks)
        if ranks.first:
            show("\n".join(lines))
            shutil.rmtree(Path(runs[-1].output).expanduser() / CACHE, ignore_errors=True)
    return 0


def _prepare(
    given: dict[str, Any], recipe: str | None, finetuning: bool, ranks: Ranks
) -> tuple[list[TrainOptions], Splits, Loaded | None, dict[str, Any]]:
    """Return the runs that follow each other, their data, the initial weights, and the options that were derived.

    What needs no data is checked before the data set is opened.
    """
    from ..training.checkpoint import find_checkpoint
    from ..training.data import open_data
    from ..training.shrinking import keep_shrunk
    from ..weights.load import load_weights

    def plan(derived: dict[str, Any]) -> list[TrainOptions]:
        if recipe is not None:
            return chain(read_recipe(recipe), given)
        if not finetuning:
            return chain([derived], given)
        epochs = given.get("epochs") or derived.get("epochs", TrainOptions.epochs)
        values = {name: value for name, value in given.items() if name != "epochs"}
        return chain([derived | stage for stage in finetune_stages(epochs)], values)

    def default(name: str) -> object:
        return FIELDS[name].default

    runs = plan({})
    for run in runs:
        find_checkpoint(run)
    loaded, derived = None, {}
    if runs[0].weights is not None:
        model = given.get("model") if recipe is None else runs[0].model
        loaded = load_weights(runs[0].weights, model=model, progress=ranks.first)
    data = open_data(runs[0], ranks)
    if recipe is None:
        derived = derive_from_weights(loaded) if loaded else {}
        size = given.get("size") or derived.get("size", TrainOptions.size)
        derived |= derive_from_data(data, size, ranks.size, pretrained=loaded is not None)
        derived = {name: value for name, value in derived.items() if name not in given and value != default(name)}
        runs = plan(derived)
    return runs, keep_shrunk(data, Path(runs[-1].output).expanduser(), runs[0].cache_size), loaded, derived


def _print_start(runs: Sequence[TrainOptions], data: Splits, derived: dict[str, Any], ranks: Ranks) -> None:
    from ..training.summary import describe_data, describe_run, estimate_seconds

    lines = describe_data(data)
    if derived:
        lines.append(f"options for these data and weights: {as_flags(derived)}")
    lines.append(describe_run(runs[0], ranks))
    lines.append(f"this will take about {duration(estimate_seconds(runs, data, ranks))}")
    show("\n".join(lines))
    if len(runs) > 1:
        _print_stage(runs, 1)


def _print_stage(runs: Sequence[TrainOptions], number: int) -> None:
    run = runs[number - 1]
    part = ", of the head alone" if run.freeze else ""
    show(f"stage {number} of {len(runs)}: {counted(run.epochs, 'epoch')}{part}")


def _print_epoch(run: TrainOptions, numbers: dict[str, Any]) -> None:
    parts = [
        f"epoch {numbers['epoch']} of {run.epochs}",
        f"size {numbers['size']}",
        f"loss {numbers['train_loss']:.4f}",
        f"{numbers['images_per_second']:.0f} images/s",
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
