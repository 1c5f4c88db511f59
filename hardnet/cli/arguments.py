"""Arguments, argument types and exit statuses that several verbs share."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from typing import NoReturn, TypeAlias

from ..utils.validation import positive
from ..weights.catalog import DEFAULT, DEFAULT_MODEL, DEFAULT_TAG, get_weights, list_models
from ..weights.load import Loaded, load_weights


class Parser(argparse.ArgumentParser):
    """A parser that answers a wrong option with the help of this option, not with a list of all."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and end the process with status 2."""
        option = re.match(r"argument (-[^\s/:]+)", message)
        lines = self.format_help().splitlines()
        first = re.compile(rf"  {re.escape(option[1])}(,| |$)") if option else None
        starts = [number for number, line in enumerate(lines) if first and first.match(line)]
        shown = [f"{self.prog}: {message}"]
        for number, line in enumerate(lines[starts[0] :] if starts else ()):
            if number and not line.startswith("   "):
                break
            shown.append(line)
        self.exit(WRONG_USE, "\n".join([*shown, f"{self.prog} --help lists all options", ""]))


Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

WEIGHTS_HELP = (
    "a tag, a file, the folder of a run or of a saved model, or hf-hub:OWNER/NAME (default: "
    f"{DEFAULT_TAG} with a model; "
    f"with neither, the packaged {DEFAULT_MODEL} for garments, without a download)"
)
SOME_FAILED, WRONG_USE, NO_WEIGHTS, NO_OUTPUT, INTERRUPTED = 1, 2, 3, 4, 130


def say(text: object) -> None:
    """Print a line on standard error."""
    print(f"hardnet: {text}", file=sys.stderr, flush=True)


def status_of_images(failed: int, total: int, *, quiet: bool = False) -> int:
    """Report unusable images on standard error, unless ``quiet``, and return the exit status."""
    if failed and not quiet:
        say(f"{failed} of {total} images could not be used")
    return 0 if not failed else SOME_FAILED if failed < total else WRONG_USE


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--model`` and ``--weights``."""
    parser.add_argument("--model", choices=list_models(), help="architecture (default: that of the weights)")
    add_weights(parser)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights``."""
    parser.add_argument("--weights", metavar="SOURCE", help=WEIGHTS_HELP)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, ``--weights``, ``--labels`` and ``--device``."""
    add_weights_arguments(parser)
    parser.add_argument("--labels", metavar="FILE", help="names of the classes, one per line")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, 0, 1, mps, ... (default: a GPU if available)")


def load_model(arguments: argparse.Namespace) -> Loaded:
    """Read the weights that ``--model`` and ``--weights`` name; say so if these are the packaged defaults."""
    if arguments.model is None and arguments.weights is None:
        note = "ten kinds of garments; for photographs of other things"
        say(f"{get_weights()}, {note}: --weights {DEFAULT_TAG} (a download)")
    return load_weights(arguments.weights or DEFAULT, model=arguments.model)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine`` and ``--precision``."""
    from ..engines import ENGINES, PRECISIONS

    engines = ("auto", *ENGINES)
    parser.add_argument("--engine", choices=engines, default="auto", help="inference engine (default: auto)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="numeric precision (default: fp32)")


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Add ``--calibration`` with paths of images."""
    parser.add_argument("--calibration", nargs="+", metavar="PATH", help="for int8: a few hundred images like PATH")


def add_decode(parser: argparse.ArgumentParser) -> None:
    """Add ``--decode``."""
    text = "fast: decode large JPEG files at a fraction of their size; results differ slightly (default: exact)"
    parser.add_argument("--decode", choices=("exact", "fast"), default="exact", help=text)


def check_calibration(arguments: argparse.Namespace, *, required: bool) -> None:
    """Check that ``--calibration`` and ``--precision int8`` go together.

    Raises:
        ValueError: they do not.
    """
    if arguments.calibration and arguments.precision != "int8":
        raise ValueError("--calibration goes with --precision int8")
    if required and arguments.precision == "int8" and not arguments.calibration:
        raise ValueError("--precision int8 requires --calibration: a few hundred images like those to come")


def add_threads(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
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
