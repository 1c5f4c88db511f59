"""The parent's end of a worker process: start it, ask it, and say why it died."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.rows import Row

_TO_EXIT = 20.0
"""Seconds that a worker has to end by itself."""
_PACKAGE_PARENT = str(Path(__file__).parents[2])


class WorkerError(RuntimeError):
    """A worker died, hung, or said that it cannot go on; the message says why in one line."""


class LeftOut(WorkerError):  # noqa: N818  (no error: a row that is not offered here)
    """The row is not to be had here: a package is missing, or the engine has no such precision."""


class Worker:
    """A running worker process; a context manager that ends it.

    Args:
        row: what it is to build.
        threads: for torch and the engine; None leaves both their own default.
        device: where it runs.
        photographs: a folder of images for calibration.
    """

    def __init__(self, row: Row, *, threads: int | None, device: str, photographs: Path | None) -> None:
        job = {
            "row": asdict(row),
            "threads": threads,
            "device": device,
            "photographs": None if photographs is None else str(photographs),
        }
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close())
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(threads),
            text=True,
            encoding="utf-8",
        )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101  (it is a pipe; for the type checker)
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def tell(self, command: dict[str, Any]) -> None:
        """Send a command; that the worker is dead shows when its answer is awaited."""
        assert self._process.stdin is not None  # noqa: S101  (it is a pipe; for the type checker)
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()

    def answer(self, timeout: float) -> dict[str, Any]:
        """Wait for the next answer.

        Raises:
            LeftOut: the row is not to be had here.
            WorkerError: the worker died, failed, or did not answer within ``timeout`` seconds.
        """
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise WorkerError(f"no answer within {timeout:.0f} seconds") from None
        if line is None:
            raise WorkerError(self._cause_of_death())
        answer: dict[str, Any] = json.loads(line)
        if "left_out" in answer:
            raise LeftOut(answer["left_out"])
        if "failed" in answer:
            raise WorkerError(answer["failed"])
        return answer

    def _cause_of_death(self) -> str:
        try:
            status = self._process.wait(_TO_EXIT)
        except subprocess.TimeoutExpired:
            return "closed its pipe but did not end"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        if status < 0:
            known = {member.value: member.name for member in signal.Signals}
            how = f"killed by {known.get(-status, f'signal {-status}')}"
            how += " (out of memory?)" if status == -9 else ""
        else:
            how = f"ended with status {status}"
        return f"{how}: {said[-1]}" if said else how

    def close(self) -> None:
        """End the process, by force where it does not go by itself."""
        assert self._process.stdin is not None  # noqa: S101  (it is a pipe; for the type checker)
        with contextlib.suppress(OSError):  # something may be left in the buffer for a dead process
            self._process.stdin.close()
        try:
            self._process.wait(_TO_EXIT)
        except subprocess.TimeoutExpired:
            self.kill()
        self._errors.close()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()


def _environment(threads: int | None) -> dict[str, str]:
    environment = dict(os.environ)
    # The package that runs is the one that asks, also where it is not installed.
    paths = [_PACKAGE_PARENT, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return environment
