"""The verb ``train``: train a model."""

from __future__ import annotations

import argparse
import dataclasses
import signal
from typing import TYPE_CHECKING, Any, get_type_hints

from ..models.config import CONFIGS
from ..training.options import FIELDS, TrainOptions, read_recipe
from .arguments import Verbs, add_threads, first_rank, prepare_process, ranks_of_torchrun
from .output import show

if TYPE_CHECKING:
    from ..training.data import Splits
    from ..weights.load import Loaded


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("train", help="train a model, on one process or under torchrun")
    add_train_arguments(parser)
    parser.set_defaults(run=run_train)


def add_train_arguments(parser: argparse.ArgumentParser, *, recipe: bool = True) -> None:
    """Add the arguments of ``train``: DATA, a flag for every other field of TrainOptions, and perhaps ``--recipe``.

    Flags that are not given are absent from the namespace, so that the defaults are those of TrainOptions.
    """
    parser.description = (
        "Train a model. The defaults are the authors' recipe for ImageNet; for fewer than 50,000 images, or with "
        "--weights, others are derived and printed. For several processes or machines, start "
        "the same command with torchrun: torchrun --nproc-per-node 2 -m hardnet train ..."
    )
    parser.set_defaults(recipe=None)
    if recipe:
        parser.add_argument(
            "--recipe",
            help="options from a file: imagenet, fashion-mnist-39ds, or the path of a JSON file; flags override it",
        )
    types = get_type_hints(TrainOptions)
    for name, field in FIELDS.items():
        flag, text, default = "--" + name.replace("_", "-"), field.metadata["help"], field.default
        if name == "data":
            parser.add_argument("data", metavar="DATA", help=text)
            continue
        if default not in (None, "", False, True, dataclasses.MISSING):
            text += f" (default: {default})"
        common: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if types[name] is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif name in ("mean", "std"):
            parser.add_argument(flag, type=float, nargs=3, metavar=("R", "G", "B"), **common)
        else:
            choices = sorted(CONFIGS) if name == "model" else field.metadata["choices"] or None
            kind = next(kind for kind in (int, float, str) if types[name] in (kind, kind | None))
            required = default is dataclasses.MISSING
            parser.add_argument(flag, type=kind, choices=choices, required=required, **common)
    add_threads(parser)


def run_train(arguments: argparse.Namespace, *, stages: bool = False) -> int:
    """Train as the arguments say and print a line per epoch; return the exit status.

    Args:
        arguments: of :func:`add_train_arguments`.
        stages: train the head first, then all: fine-tuning.
    """
    from ..training.loop import train

    given = {name: value for name, value in vars(arguments).items() if name in FIELDS}
    prepare_process(arguments)
    runs, data, loaded = _plan(given, arguments.recipe, stages)
    for number, run in enumerate(runs, 1):
        if first_rank() and len(runs) > 1:
            show(f"stage {number} of {len(runs)}: {run.epochs} epochs")
        outcome = train(run, _print_epoch, data, loaded if number == 1 else None)
        if not outcome.finished:
            for signal_number in (signal.SIGTERM, signal.SIGINT):  # the process is about to end
                signal.signal(signal_number, signal.SIG_IGN)
            done = f"stopped by a signal after {outcome.epochs} complete epochs, the position is saved"
            done += ": go on with --resume auto"
            break
        done = f"trained {outcome.epochs} epochs: {outcome.folder}"
    if first_rank():
        show(done)
    return 0


def _plan(
    given: dict[str, Any], recipe: str | None, stages: bool
) -> tuple[list[TrainOptions], Splits | None, Loaded | None]:
    """Return the runs that follow each other; without a recipe, suited to data and weights, which are then open."""
    from ..training.data import open_data
    from ..training.derived_options import as_flags, chain, finetune_stages, suit_data, suit_weights
    from ..weights.load import load_weights

    if recipe is not None:
        return chain(read_recipe(recipe), given), None, None
    first = TrainOptions(**given)
    data = open_data(first)
    images = len(data.train)
    suited = suit_data(images, ranks_of_torchrun(), pretrained=first.weights is not None)
    loaded = None
    if first.weights is not None:
        loaded = load_weights(first.weights, model=given.get("model"), progress=first_rank())
        suited |= suit_weights(loaded)
    suited = {name: value for name, value in suited.items() if name not in given}
    if first_rank():
        kept = 0 if data.val is None else len(data.val)
        show(f"{len(data.train.classes)} classes, {images} images for training, {kept} for validation")
        if suited:
            show(f"options for these data and weights: {as_flags(suited)}")
    if not stages:
        return chain([suited], given), data, loaded
    plan = finetune_stages(given.pop("epochs", None) or suited.get("epochs", TrainOptions.epochs))
    return chain([suited | stage for stage in plan], given), data, loaded


def _print_epoch(numbers: dict[str, Any]) -> None:
    parts = [
        f"epoch {numbers['epoch']}",
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
        parts.append(f"{numbers['skipped_images']} bad images skipped")
    show(", ".join(parts))
