"""Arguments, argument types and exit statuses that several verbs share."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import TypeAlias

from ..utils.validation import positive
from ..weights.catalog import DEFAULT_TAG, list_models
from ..weights.folder import is_pretrained, read_pretrained

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

SOME_FAILED, WRONG_USE, NO_WEIGHTS, NO_OUTPUT, INTERRUPTED = 1, 2, 3, 4, 130


def say(text: object) -> None:
    """Print a line on standard error."""
    print(f"hardnet: {text}", file=sys.stderr, flush=True)


def status_of_images(failed: int, total: int) -> int:
    """Report unusable images on standard error and return the exit status."""
    if failed:
        say(f"{failed} of {total} images could not be used")
    return 0 if not failed else SOME_FAILED if failed < total else WRONG_USE


PACKAGED_MODEL, PACKAGED_TAG = "hardnet39ds", "FASHION_MNIST"
"""The defaults of `predict` and `explain`: they need no download."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, ``--weights``, ``--labels`` and ``--device``."""
    parser.add_argument(
        "--model", choices=list_models(), help=f"default: that of a folder of weights, else {PACKAGED_MODEL}"
    )
    parser.add_argument(
        "--weights",
        help=f"a tag, file or folder; default: {DEFAULT_TAG} with --model, else {PACKAGED_TAG} (no download)",
    )
    parser.add_argument("--labels", metavar="FILE", help="names of the classes, one per line")
    parser.add_argument("--device", default="auto", help="cpu, cuda, 0, 1, mps, ... (default: a GPU if available)")


def chosen_model(arguments: argparse.Namespace) -> tuple[str, str]:
    """Return the name and the weights; print on standard error if these are the packaged defaults."""
    if arguments.model is None and arguments.weights is None:
        note = "ten kinds of garments; for photographs of other things"
        say(f"{PACKAGED_MODEL} {PACKAGED_TAG}, {note}: --weights {DEFAULT_TAG} (a download)")
        return PACKAGED_MODEL, PACKAGED_TAG
    if arguments.model is None and is_pretrained(arguments.weights):
        return read_pretrained(arguments.weights).config.name, arguments.weights
    return arguments.model or PACKAGED_MODEL, arguments.weights or DEFAULT_TAG


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine`` and ``--precision``."""
    from ..engines import ENGINES, PRECISIONS

    engines = ("auto", *ENGINES)
    parser.add_argument("--engine", choices=engines, default="auto", help="inference engine (default: auto)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="numeric precision (default: fp32)")


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Add ``--calibration`` with paths of images."""
    parser.add_argument("--calibration", nargs="+", metavar="PATH", help="for int8: a few hundred images like PATH")


def check_calibration(arguments: argparse.Namespace, *, required: bool) -> None:
    """Check that ``--calibration`` and ``--precision int8`` go together.

    Raises:
        ValueError: they do not.
    """
    if arguments.calibration and arguments.precision != "int8":
        raise ValueError("--calibration goes with --precision int8")
    if required and arguments.precision == "int8" and not arguments.calibration:
        raise ValueError("--precision int8 requires --calibration: a few hundred images like those to come")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads``."""
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads per rank (default: torch's choice)")


def prepare_process(arguments: argparse.Namespace) -> None:
    """Set the number of threads, huge pages, and the log level of all ranks except the first."""
    # torch reads it with its first large tensor on Linux. Huge pages save the time of mapping millions of small ones.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if arguments.threads is not None:
        import torch

        torch.set_num_threads(arguments.threads)
    if not first_rank():
        logging.getLogger("hardnet").setLevel(logging.ERROR)


def ranks_of_torchrun() -> int:
    """Return how many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_rank() -> bool:
    """Return whether this process is the first rank of a torchrun group, or runs alone."""
    return os.environ.get("RANK", "0") == "0"
