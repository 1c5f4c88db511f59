"""The verb ``train``: train a model."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from typing import Any, get_type_hints

from ..models.config import CONFIGS
from ..training.options import FIELDS, TrainOptions, read_recipe
from ..utils.errors import TrainingError
from .arguments import FAILED, INTERRUPTED, Verbs, add_threads, first_rank, prepare_process


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("train", help="train a model, on one process or under torchrun")
    add_train_arguments(parser)
    parser.set_defaults(run=run_train)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``train``: DATA, and a flag for every other field of TrainOptions.

    Flags that are not given are absent from the namespace, so that the defaults are those of TrainOptions.
    """
    parser.description = (
        "Train a model. The defaults are the authors' recipe for ImageNet. For several processes or machines, start "
        "the same command with torchrun: torchrun --nproc-per-node 2 -m hardnet train ..."
    )
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


def run_train(arguments: argparse.Namespace) -> int:
    """Train as the arguments say and print a line per epoch; return the exit status."""
    from ..training.loop import train

    values = {} if arguments.recipe is None else read_recipe(arguments.recipe)
    values |= {name: value for name, value in vars(arguments).items() if name in FIELDS}
    values |= {name: tuple(values[name]) for name in ("mean", "std") if values.get(name)}
    prepare_process(arguments)
    try:
        outcome = train(TrainOptions(**values), _print_epoch)
    except TrainingError as error:
        print(f"hardnet: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        _ignore_signals()
        return INTERRUPTED
    if not outcome.finished:
        _ignore_signals()
    if first_rank():
        if outcome.finished:
            print(f"trained {outcome.epochs} epochs: {outcome.folder}")
        else:
            print(
                f"stopped by a signal after {outcome.epochs} complete epochs, the position is saved: go on with "
                "--resume auto"
            )
    return 0


def _ignore_signals() -> None:
    """Let the process, which is about to end, do so without a traceback when more signals arrive."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


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
    print(", ".join(parts), flush=True)
