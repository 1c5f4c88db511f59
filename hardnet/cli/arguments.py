"""Arguments, argument types and exit statuses that several verbs share."""

from __future__ import annotations

import argparse
import logging
import os
from typing import TypeAlias

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

SOME_FAILED, WRONG_USE, NO_WEIGHTS, INTERRUPTED = 1, 2, 3, 130
FAILED = 1
"""The exit status of a run that stopped short: loss not a number, checkpoint not writable or not fitting."""
_MOST_DIGITS = 6  # of a side in pixels: counting beyond would overflow


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine`` and ``--precision``."""
    from ..engines import ENGINES, PRECISIONS

    engines = ("auto", *ENGINES)
    parser.add_argument("--engine", choices=engines, default="eager", help="what runs the model (default: eager)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the engine (default: fp32)")


def image_size(text: str) -> tuple[int, int]:
    """Read H or HxW, in pixels; for argparse.

    Raises:
        ArgumentTypeError: it is something else.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and len(side) <= _MOST_DIGITS for side in sides):
        raise argparse.ArgumentTypeError(f"H or HxW in pixels is wanted, as in 224 or 480x640, got {text!r}")
    return int(sides[0]), int(sides[-1])


def positive(text: str) -> int:
    """Read an integer >= 1; for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 up is wanted, got {text!r}")
    return int(text)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads``."""
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads per rank (default: torch's choice)")


def prepare_process(arguments: argparse.Namespace) -> None:
    """Set what belongs to the process, not to the library: threads, and who speaks in the log."""
    # Read by torch with its first large tensor on Linux: huge pages, where the kernel gives them, save the time that
    # goes into millions of small ones being mapped and given back in every epoch.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {arguments.threads}")
        import torch

        torch.set_num_threads(arguments.threads)
    if not first_rank():
        logging.getLogger("hardnet").setLevel(logging.ERROR)


def first_rank() -> bool:
    """Return whether this process is the first rank of a torchrun group, or runs alone."""
    return os.environ.get("RANK", "0") == "0"
