"""An object in a process of its own, whose methods are called by name, and whose death is an error with a reason."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

EXIT_TIMEOUT = 20.0
"""Seconds to wait for the end of a process."""


class ChildError(RuntimeError):
    """A process died, did not answer, or an exception was raised in it; the message says why in one line."""


class LeftOut(ChildError):  # noqa: N818  (not an error)
    """What was asked for is not available here: a package is missing, or an engine does not have this precision."""


class Child:
    """A running process with an object in it; it ends when this process dies.

    Args:
        make: makes the object in the new process.
        arguments: of ``make``.
        timeout: seconds to wait for the object.

    Raises:
        LeftOut, ChildError: as for :meth:`ask`.
    """

    def __init__(self, make: Callable[..., Any], arguments: tuple[Any, ...], timeout: float) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments))
        self.process.start()
        theirs.close()  # so that the end of the process is noticed
        try:
            self._answer(timeout)
        except ChildError:
            self.close()
            raise

    def ask(self, method: str, *arguments: Any, timeout: float = 600.0) -> Any:
        """Call a method of the object and return its result.

        Raises:
            LeftOut: ImportError or NotImplementedError was raised.
            ChildError: another exception was raised, or the process died or did not answer in ``timeout`` seconds.
        """
        with contextlib.suppress(OSError):  # that the process is dead is noticed below
            self._connection.send((method, arguments))
        return self._answer(timeout)

    def _answer(self, timeout: float) -> Any:
        if not self._connection.poll(timeout):
            raise ChildError(f"no answer within {timeout:.0f} seconds")
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            self.process.join(EXIT_TIMEOUT)
            status = self.process.exitcode or 0
            how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            raise ChildError(how + (" (out of memory?)" if status == -9 else "")) from None
        if isinstance(answer, ChildError):
            raise answer
        return answer

    def close(self) -> None:
        """End the process, by force if necessary."""
        self._connection.close()
        self.process.join(EXIT_TIMEOUT)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()


def _serve(connection: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.dup2(2, 1)  # what libraries print must not mix with the results
    try:
        served = make(*arguments)
        connection.send(None)
        while True:
            method, values = connection.recv()
            connection.send(getattr(served, method)(*values))
    except EOFError:
        return
    except (ImportError, NotImplementedError) as error:
        connection.send(LeftOut(str(error)))
    except Exception as error:  # whatever a model or an engine raises is the result of its row
        traceback.print_exc()
        reason = (str(error).strip().splitlines() or [""])[0]
        connection.send(ChildError(f"{type(error).__name__}: {reason}"))
