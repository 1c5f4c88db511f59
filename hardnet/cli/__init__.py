"""The command line: argument parsing, and one call into the library per verb."""

import argparse
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

from ..utils.errors import ExportError, OutputError, TrainingError, WeightsError
from ..utils.text import printable, reason
from ..utils.version import __version__
from . import benchmark, demo, evaluate, explain, export, extract, info, predict, segment, train, weights
from .arguments import INTERRUPTED, NO_OUTPUT, NO_WEIGHTS, SOME_FAILED, WRONG_USE, Parser, say
from .output import reserved_for_results

_STATUSES = """Exit status: 0, success; 1, some images or files were unusable and the rest was done, or a training run
failed; 2, the command line is wrong or there is nothing to work on; 3, weights could not be downloaded or do not fit;
4, a file could not be read or written; 130, interrupted."""
_STATUS = {WeightsError: NO_WEIGHTS, ExportError: SOME_FAILED, TrainingError: SOME_FAILED, OutputError: NO_OUTPUT}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, by default that of the process, and return its exit status."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller: its number must not go to another file
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
    try:
        try:
            arguments = build_parser().parse_args(argv)
        finally:
            sys.stdout.flush()  # a help text
        with reserved_for_results(), _messages(arguments.verbose):
            return int(arguments.run(arguments))
    except (WeightsError, ExportError, TrainingError, OutputError, ValueError, ImportError) as error:
        say(error)
        return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), WRONG_USE)
    except BrokenPipeError:  # the reader has ended, as `head` does
        _drop_output()
        return 0
    except OSError as error:
        _drop_output()
        say(": ".join([*([printable(str(error.filename))] if error.filename else []), reason(error)]))
        return NO_OUTPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def _drop_output() -> None:
    """Let Python's own flush at the end of the process succeed."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: not a file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _messages(verbose: bool) -> Iterator[None]:
    """Format this library's messages and warnings on standard error; others are for developers, with ``verbose``."""
    if hasattr(sys.stderr, "reconfigure"):  # file names need not be printable in the terminal's encoding
        sys.stderr.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("hardnet: %(message)s"))
    logger = logging.getLogger("hardnet")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    with warnings.catch_warnings():
        if not verbose:
            logging.getLogger("torch").setLevel(logging.ERROR)
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module="hardnet")
            warnings.showwarning = lambda message, *_, **__: say(message)
        yield


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the function of the chosen one is ``run``."""
    parser = Parser(prog="hardnet", description="HarDNet image classifiers.", epilog=_STATUSES)
    parser.add_argument("--version", action="version", version=f"hardnet {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more on standard error")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for verb in (predict, explain, extract, segment, export, info, weights, train, evaluate, demo, benchmark):
        verb.add_verb(verbs)
    return parser
