"""Arguments, argument types and exit statuses that several verbs share."""

import argparse
import logging
import os
import re
import sys
from typing import Any, NoReturn, TypeAlias

import torch

from ..engines import ENGINES, PRECISIONS
from ..utils.validation import positive
from ..weights.catalog import DEFAULT, DEFAULT_MODEL, DEFAULT_TAG, get_weights, list_models
from ..weights.load import Loaded, load_weights

Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"
SOME_FAILED, WRONG_USE, NO_WEIGHTS, NO_OUTPUT, INTERRUPTED = 1, 2, 3, 4, 130

OPTIONS: dict[str, dict[str, Any]] = {
    "paths": {
        "nargs": "*",
        "metavar": "PATH",
        "help": "an image, a folder, a pattern like '*.jpg', or - (a list on stdin)",
    },
    "--from-file": {"metavar": "FILE", "help": "a text file with one path per line"},
    "--model": {"choices": list_models(), "help": "architecture (default: that of the weights)"},
    "--weights": {
        "metavar": "SOURCE",
        "help": "a tag, a file, the folder of a run or of a saved model, or hf-hub:OWNER/NAME (default: "
        f"{DEFAULT_TAG} with a model; with neither, the packaged {DEFAULT_MODEL} for garments, without a download)",
    },
    "--labels": {"metavar": "FILE", "help": "names of the classes, one per line"},
    "--device": {"default": "auto", "help": "cpu, cuda, 0, 1, mps, ... (default: a GPU if available)"},
    "--engine": {"choices": ("auto", *ENGINES), "default": "auto", "help": "inference engine (default: auto)"},
    "--precision": {"choices": PRECISIONS, "default": "fp32", "help": "numeric precision (default: fp32)"},
    "--calibration": {"nargs": "+", "metavar": "PATH", "help": "for int8: a few hundred images like PATH"},
    "--decode": {
        "choices": ("exact", "fast"),
        "default": "exact",
        "help": "fast: decode large JPEG files at a fraction of their size; results differ slightly (default: exact)",
    },
    "--batch-size": {"type": positive, "default": 32, "metavar": "N", "help": "images at once (default: 32)"},
    "--resume": {"action": "store_true", "help": "continue FILE: skip the images that it has"},
    "--overwrite": {"action": "store_true", "help": "replace FILE if it exists"},
    "--on": {
        "metavar": "ray[=ADDRESS]",
        "help": "run on Ray, without ADDRESS on this machine; --output is a new folder",
    },
    "--column": {"metavar": "NAME", "help": "with --on: the column of the images in Parquet files"},
    "--threads": {"type": positive, "metavar": "N", "help": "CPU threads per rank (default: torch's choice)"},
}
"""The options that several verbs have in common, as keywords of ``add_argument``."""


class Parser(argparse.ArgumentParser):
    """A parser that answers a wrong option with the help of this option, not with a list of all."""

    def add(self, *names: str) -> None:
        """Add options of :data:`OPTIONS`."""
        for name in names:
            self.add_argument(name, **OPTIONS[name])

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and end the process with status 2."""
        option = re.match(r"argument (-[^\s/:]+)", message)
        line = rf"^  {re.escape(option[1])}(?=[ ,\n]).*\n(   .*\n)*" if option else "$^"
        text = re.search(line, self.format_help(), re.MULTILINE)
        self.exit(WRONG_USE, f"{self.prog}: {message}\n{text[0] if text else ''}{self.prog} --help lists all options\n")


def pick(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return some of the arguments as keywords."""
    return {name: getattr(arguments, name) for name in names}


def say(text: object) -> None:
    """Print a line on standard error."""
    print(f"hardnet: {text}", file=sys.stderr, flush=True)


def status_of_images(failed: int, total: int, *, quiet: bool = False) -> int:
    """Report unusable images on standard error, unless ``quiet``, and return the exit status."""
    if failed and not quiet:
        say(f"{failed} of {total} images could not be used")
    return 0 if not failed else SOME_FAILED if failed < total else WRONG_USE


def load_model(arguments: argparse.Namespace) -> Loaded:
    """Read the weights that ``--model`` and ``--weights`` name; say so if these are the packaged defaults."""
    if arguments.model is None and arguments.weights is None:
        note = "ten kinds of garments; for photographs of other things"
        say(f"{get_weights()}, {note}: --weights {DEFAULT_TAG} (a download)")
    return load_weights(arguments.weights or DEFAULT, model=arguments.model)


def check_calibration(arguments: argparse.Namespace, *, required: bool) -> None:
    """Check that ``--calibration`` and ``--precision int8`` go together."""
    if arguments.calibration and arguments.precision != "int8":
        raise ValueError("--calibration goes with --precision int8")
    if required and arguments.precision == "int8" and not arguments.calibration:
        raise ValueError("--precision int8 requires --calibration: a few hundred images like those to come")


def prepare_process(arguments: argparse.Namespace) -> None:
    """Set the number of threads, huge pages, and the log level of all ranks except the first."""
    # torch reads it with its first large tensor on Linux. Huge pages save the time of mapping millions of small ones.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if not first_rank():
        logging.getLogger("hardnet").setLevel(logging.ERROR)


def ranks_of_torchrun() -> int:
    """Return how many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_rank() -> bool:
    """Return whether this process is the first rank of a torchrun group, or runs alone."""
    return os.environ.get("RANK", "0") == "0"
