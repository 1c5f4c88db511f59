"""Standard output is for results: what libraries print goes to standard error."""

import contextlib
import os
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from typing import TextIO

from ..utils.errors import OutputError
from ..utils.text import reason

_results: TextIO | None = None


@contextlib.contextmanager
def reserved_for_results() -> Iterator[None]:
    """Send everything that is printed except by :func:`show` to standard error, also by code that is not Python."""
    global _results
    _results = stdout = sys.stdout
    with contextlib.ExitStack() as stack:
        # The stream of this process, not replaced by a test or a notebook.
        if isinstance(stdout, TextIOWrapper) and stdout is sys.__stdout__:
            saved = os.dup(1)
            # Names of files are written as their bytes. Other encodings than UTF-8 cannot hold all labels.
            errors = "surrogateescape" if stdout.encoding.lower() == "utf-8" else "backslashreplace"
            _results = open(saved, "w", encoding=stdout.encoding, errors=errors)  # noqa: PTH123, SIM115
            stack.callback(_close, _results)
            os.dup2(2, 1)
            stack.callback(os.dup2, saved, 1)
        sys.stdout = sys.stderr
        try:
            yield
        finally:
            sys.stdout, _results = stdout, None


def _close(file: TextIO) -> None:
    with contextlib.suppress(OSError):  # reported when it was written
        file.close()


def show(text: object) -> None:
    """Print a result on standard output, at once, so that a killed process leaves whole lines.

    Raises:
        OutputError: standard output cannot be written.
        BrokenPipeError: its reader has ended, as `head` does.
    """
    try:
        print(text, file=_results, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output cannot be written: {reason(error)}") from None


def shown_on_terminal() -> bool:
    """Return whether results scroll by on a terminal."""
    return (_results or sys.stdout).isatty()
