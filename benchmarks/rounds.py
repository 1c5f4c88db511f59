"""Interleaved measurement: every network has a process, and the processes take turns, one at a time."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import available
from benchmarks.rows import Row

BUILD_TIMEOUT, TURN_TIMEOUT, EXIT_TIMEOUT = 1800.0, 600.0, 20.0
"""Seconds to wait for a worker."""
LEAST_MEMORY = 1500.0
"""MB that must be available to start another worker."""
BUILDERS = 2
"""Workers that build at the same time."""


@dataclass(frozen=True)
class Protocol:
    """How to measure.

    Raises:
        ValueError: a number is out of range.
    """

    rounds: int = 10
    """Turns of each row."""
    turn_seconds: float = 0.3
    """Length of a turn: one untimed pass, then as many timed ones as fit, at least one."""
    pause_seconds: float = 0.03
    """Before each turn, so that the threads of the previous row fall asleep."""
    threads: int | None = None
    """Of every row; None is the default of each engine."""
    device: str = "cpu"
    photographs: Path | None = None
    """A folder of images to calibrate int8 on."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 < self.turn_seconds < math.inf or not 0 <= self.pause_seconds < math.inf:
            raise ValueError("rounds and turn_seconds must be positive, pause_seconds not negative, and all finite")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")


@dataclass
class Outcome:
    """The measurements of one row."""

    row: Row
    facts: dict[str, Any] = field(default_factory=dict)
    """Reported by the worker: memory, and the processor time used between turns."""
    rounds: list[list[float]] = field(default_factory=list)
    """Seconds of every timed pass, round by round."""
    left_out: str | None = None
    """Why it is not available here: a package is missing, or the engine does not have this precision."""
    failed: str | None = None
    """Why it failed."""

    @property
    def measured(self) -> bool:
        """Whether there are figures to show."""
        return self.left_out is None and self.failed is None and bool(self.rounds)


class WorkerError(RuntimeError):
    """A worker died, did not answer, or reported an error; the message says why in one line."""


class LeftOut(WorkerError):  # noqa: N818  (not an error)
    """The row is not available here."""


class Worker:
    """A running worker process.

    Args:
        row: what it builds.
        protocol: threads, device and photographs.
    """

    def __init__(self, row: Row, protocol: Protocol) -> None:
        photographs = None if protocol.photographs is None else str(protocol.photographs)
        threads = protocol.threads
        job = {"row": asdict(row), "threads": threads, "device": protocol.device, "photographs": photographs}
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        if threads is not None:
            environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close())
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(job)],
            stdin=pipe, stdout=pipe, stderr=self._errors, env=environment, text=True, encoding="utf-8",
        )  # fmt: skip
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._answers.put(line)
        self._answers.put(None)

    def ask(self, command: dict[str, Any] | None, timeout: float) -> dict[str, Any]:
        """Send a command and wait for the answer; None waits for the answer to the job.

        Raises:
            LeftOut: the row is not available here.
            WorkerError: the worker died, failed, or did not answer within ``timeout`` seconds.
        """
        if command is not None and self.process.stdin is not None:
            with contextlib.suppress(OSError):  # a dead worker is reported below
                self.process.stdin.write(json.dumps(command) + "\n")
                self.process.stdin.flush()
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
        status = self.process.wait(EXIT_TIMEOUT)
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        how = f"ended with status {status}"
        if status < 0:
            how = f"killed by {signal.Signals(-status).name}" + (" (out of memory?)" if status == -9 else "")
        return ": ".join([how, *last])

    def close(self) -> None:
        """End the process, by force if necessary."""
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._errors.close()


def measure(
    rows: Sequence[Row],
    protocol: Protocol,
    say: Callable[[str], None] = lambda text: None,
    start: Callable[[Row, Protocol], Worker] = Worker,
) -> list[Outcome]:
    """Build all networks, then time them in turns, shape by shape. A row that fails does not stop the others.

    Every second round goes backwards, so that a steady drift of the machine cancels.

    Args:
        rows: what to compare.
        protocol: how.
        say: called with a line of progress.
        start: starts a worker.
    """
    outcomes = [Outcome(row) for row in rows]
    by_network: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        by_network.setdefault(outcome.row.network, []).append(outcome)
    workers: dict[tuple[str, ...], Worker] = {}
    with contextlib.ExitStack() as stack:

        def build(these: list[Outcome]) -> None:
            row = these[0].row
            say(f"building {row}")
            with _failure_belongs_to(*these):
                if (left := available()) is not None and left < LEAST_MEMORY:
                    raise WorkerError(f"only {left:.0f} MB of memory are available: measure fewer rows at once")
                worker = start(row, protocol)
                stack.callback(worker.close)
                worker.ask(None, BUILD_TIMEOUT)
                workers[row.network] = worker

        with ThreadPoolExecutor(BUILDERS) as pool:
            list(pool.map(build, by_network.values()))
        for shape in dict.fromkeys(row.shape for row in rows):
            these = [outcome for outcome in outcomes if outcome.row.shape == shape and outcome.row.network in workers]
            _take_turns(these, workers, protocol, say)
    return outcomes


def _take_turns(
    outcomes: list[Outcome], workers: dict[tuple[str, ...], Worker], protocol: Protocol, say: Callable[[str], None]
) -> None:
    def ask(outcome: Outcome, command: dict[str, Any]) -> dict[str, Any]:
        with _failure_belongs_to(outcome):
            return {} if outcome.failed else workers[outcome.row.network].ask(command, TURN_TIMEOUT)
        return {}

    for outcome in outcomes:
        ask(outcome, {"shape": outcome.row.shape})
    for number in range(protocol.rounds):
        say(f"round {number + 1} of {protocol.rounds}")
        for outcome in outcomes if number % 2 == 0 else reversed(outcomes):
            time.sleep(protocol.pause_seconds)
            if answer := ask(outcome, {"turn": protocol.turn_seconds}):
                outcome.rounds.append(answer["times"])
    for outcome in outcomes:
        outcome.facts = ask(outcome, {"finish": True})


@contextlib.contextmanager
def _failure_belongs_to(*outcomes: Outcome) -> Iterator[None]:
    try:
        yield
    except LeftOut as error:
        for outcome in outcomes:
            outcome.left_out = str(error)
    except WorkerError as error:
        for outcome in outcomes:
            outcome.failed = str(error)
