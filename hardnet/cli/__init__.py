"""The command line: argument parsing, and one call into the library per verb.

Exit status: 0, success; 1, some images or files were unusable and the rest was done, or a training run failed;
2, the command line is wrong or there is nothing to work on; 3, weights could not be downloaded or do not fit; 4, the
output could not be written; 130, interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence

from ..utils.errors import ExportError, OutputError, TrainingError, WeightsError
from ..utils.version import __version__
from . import benchmark, demo, evaluate, explain, export, extract, finetune, info, predict, train, weights
from .arguments import INTERRUPTED, NO_OUTPUT, NO_WEIGHTS, SOME_FAILED, WRONG_USE, say

Verb = Callable[[argparse.Namespace], int]
_STATUS = {WeightsError: NO_WEIGHTS, ExportError: SOME_FAILED, TrainingError: SOME_FAILED, OutputError: NO_OUTPUT}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: the arguments without the program's name; None takes those of the process.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    try:
        try:
            arguments = build_parser().parse_args(argv)
            _prepare_terminal(arguments.verbose)
            verb: Verb = arguments.run
            return verb(arguments)
        finally:
            sys.stdout.flush()
    except (WeightsError, ExportError, TrainingError, OutputError, ValueError, ImportError) as error:
        say(error)
        return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), WRONG_USE)
    except BrokenPipeError:  # the reader has ended, as `head` does
        _drop_output()
        return 0
    except OSError as error:
        _drop_output()
        say(f"standard output cannot be written: {error.strerror or error}")
        return NO_OUTPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def _drop_output() -> None:
    """Let Python's own flush at the end of the process succeed."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: not a file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _prepare_terminal(verbose: bool) -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names need not be printable in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("hardnet: %(message)s"))
    logger = logging.getLogger("hardnet")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the function of the chosen one is ``run``."""
    parser = argparse.ArgumentParser(
        prog="hardnet", description="HarDNet image classifiers.", epilog=__doc__.split("\n\n", 1)[1]
    )
    parser.add_argument("--version", action="version", version=f"hardnet {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more on standard error")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for verb in (predict, explain, extract, export, info, weights, train, finetune, evaluate, demo, benchmark):
        verb.add_verb(verbs)
    return parser
