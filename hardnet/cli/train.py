"""The verb ``train``: train a model."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from ..models.config import CONFIGS
from ..training.errors import TrainingError
from ..training.options import CHOICES, HELP, TrainOptions
from .arguments import FAILED, Verbs, add_threads, first_rank, prepare_process

_TYPES: dict[str, Callable[[str], Any]] = {"num_classes": int, "drop_rate": float, "eval_size": int}
_THREE_NUMBERS = ("mean", "std")


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("train", help="train a model, on one process or under torchrun")
    add_train_arguments(parser)
    parser.set_defaults(run=run_train)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``train``: DATA, and a flag for every field of TrainOptions."""
    parser.description = (
        "Train a model. The defaults are the authors' recipe for ImageNet. For several processes or machines, start "
        "the same command with torchrun: torchrun --nproc-per-node 2 -m hardnet train ..."
    )
    parser.add_argument(
        "data", metavar="DATA", help='a folder with train/CLASS/image and val/CLASS/image, or "fashion-mnist"'
    )
    for field in dataclasses.fields(TrainOptions):
        if field.name == "data":
            continue
        flag, text = "--" + field.name.replace("_", "-"), HELP[field.name]
        required = field.default is dataclasses.MISSING
        default = None if required else field.default
        if default not in (None, "", False, True):
            text += f" (default: {default})"
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        elif field.name in _THREE_NUMBERS:
            parser.add_argument(flag, type=float, nargs=3, metavar=("R", "G", "B"), help=text)
        else:
            choices = sorted(CONFIGS) if field.name == "model" else CHOICES.get(field.name)
            kind = _TYPES.get(field.name, str if default is None else type(default))
            parser.add_argument(flag, type=kind, default=default, choices=choices, required=required, help=text)
    add_threads(parser)


def run_train(arguments: argparse.Namespace) -> int:
    """Train as the arguments say and print a line per epoch; return the exit status."""
    from ..training.loop import train

    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(TrainOptions)}
    for name in _THREE_NUMBERS:
        values[name] = None if values[name] is None else tuple(values[name])
    prepare_process(arguments)
    try:
        outcome = train(TrainOptions(**values), _print_epoch)
    except TrainingError as error:
        print(f"hardnet: {error}", file=sys.stderr)
        return FAILED
    if first_rank():
        if outcome.finished:
            print(f"trained {outcome.epochs} epochs: {outcome.folder}")
        else:
            print(
                f"stopped by a signal after {outcome.epochs} complete epochs, the position is saved: go on with "
                "--resume auto"
            )
    return 0


def _print_epoch(numbers: dict[str, Any]) -> None:
    parts = [
        f"epoch {numbers['epoch']}",
        f"size {numbers['size']}",
        f"loss {numbers['train_loss']:.4f}",
        f"{numbers['images_per_second']:.0f} images/s",
    ]
    for prefix, name in (("val", "validation"), ("ema_val", "averaged")):
        if f"{prefix}_top1_error" in numbers:
            errors = f"{numbers[f'{prefix}_top1_error']:.2f} / {numbers[f'{prefix}_top5_error']:.2f}"
            parts.append(f"{name} top-1 / top-5 error {errors}")
    if numbers["skipped_images"]:
        parts.append(f"{numbers['skipped_images']} bad images skipped")
    print(", ".join(parts), flush=True)
