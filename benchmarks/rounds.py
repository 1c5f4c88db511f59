"""Interleaved measurement: every row gets a process, and the processes take turns, one at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

from benchmarks.memory import available
from benchmarks.process import LeftOut, Worker, WorkerError
from benchmarks.rows import Row

BUILD_TIMEOUT, TURN_TIMEOUT = 1800.0, 600.0
"""Seconds after which a silent worker is given up."""
LEAST_MEMORY = 1500.0
"""MB that must be available for another worker to be started."""


@dataclass(frozen=True)
class Protocol:
    """How to measure.

    Raises:
        ValueError: a number is out of its range.
    """

    rounds: int = 10
    """How often each row gets its turn."""
    turn_seconds: float = 0.3
    """How long a turn lasts: one untimed pass, then as many timed ones as fit, at least one."""
    pause_seconds: float = 0.03
    """Between turns, in which the threads of the last row fall asleep."""
    threads: int | None = None
    """Of every row; None leaves each engine its own default."""
    device: str = "cpu"
    """"cpu" or "cuda"."""
    photographs: Path | None = None
    """A folder of images to calibrate int8 on."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 < self.turn_seconds < math.inf or not 0 <= self.pause_seconds < math.inf:
            raise ValueError("rounds and turn_seconds must be positive, pause_seconds not negative, and all finite")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")


@dataclass
class Outcome:
    """What became of one row."""

    row: Row
    facts: dict[str, Any] = field(default_factory=dict)
    """What the worker said of it: MACs, memory, ..."""
    rounds: list[list[float]] = field(default_factory=list)
    """Seconds of every timed pass, round by round."""
    left_out: str | None = None
    """Why it is not to be had here: a package is missing, or the engine has no such precision."""
    failed: str | None = None
    """Why it failed."""

    @property
    def measured(self) -> bool:
        """Whether there are figures to show."""
        return self.left_out is None and self.failed is None and bool(self.rounds)


class WorkerLike(Interface):
    """What the rounds need of a worker; see :class:`benchmarks.process.Worker`."""

    def tell(self, command: dict[str, Any]) -> None:
        """Send a command."""

    def answer(self, timeout: float) -> dict[str, Any]:
        """Wait for an answer; raises WorkerError."""

    def close(self) -> None:
        """End it."""


Start = Callable[[Row, Protocol], WorkerLike]


def start_worker(row: Row, protocol: Protocol) -> Worker:
    """Start the process of one row."""
    return Worker(row, threads=protocol.threads, device=protocol.device, photographs=protocol.photographs)


def measure(
    rows: Sequence[Row],
    protocol: Protocol,
    say: Callable[[str], None] = lambda text: None,
    start: Start = start_worker,
) -> list[Outcome]:
    """Build the rows one after the other, then time them in turns. A row that fails does not stop the others.

    Args:
        rows: what to compare.
        protocol: how.
        say: called with a line on how far it is.
        start: starts a worker; to be replaced in tests.
    """
    outcomes = [Outcome(row) for row in rows]
    workers: dict[Row, WorkerLike] = {}
    with ExitStack() as stack:
        for number, outcome in enumerate(outcomes, 1):
            say(f"building {number} of {len(rows)}: {outcome.row}")
            with _failure_belongs_to(outcome):
                _check_memory()
                worker = start(outcome.row, protocol)
                stack.callback(worker.close)
                outcome.facts = worker.answer(BUILD_TIMEOUT)
                workers[outcome.row] = worker
        for number in range(protocol.rounds):
            say(f"round {number + 1} of {protocol.rounds}")
            for outcome in turns(outcomes, number):
                if outcome.failed is None and outcome.row in workers:
                    with _failure_belongs_to(outcome):
                        outcome.rounds.append(_turn(workers[outcome.row], protocol))
        for outcome in outcomes:
            if outcome.measured:
                with _failure_belongs_to(outcome):
                    workers[outcome.row].tell({"finish": True})
                    outcome.facts |= workers[outcome.row].answer(TURN_TIMEOUT)
    return outcomes


def turns(outcomes: Sequence[Outcome], number: int) -> list[Outcome]:
    """Return the order of one round: there and back again, so that a steady drift cancels."""
    return list(outcomes) if number % 2 == 0 else list(reversed(outcomes))


def _turn(worker: WorkerLike, protocol: Protocol) -> list[float]:
    time.sleep(protocol.pause_seconds)
    worker.tell({"turn": protocol.turn_seconds})
    times: list[float] = worker.answer(TURN_TIMEOUT)["times"]
    return times


def _check_memory() -> None:
    left = available()
    if left is not None and left < LEAST_MEMORY:
        raise WorkerError(f"only {left:.0f} MB of memory are left: measure fewer rows at once")


@contextmanager
def _failure_belongs_to(outcome: Outcome) -> Iterator[None]:
    try:
        yield
    except LeftOut as error:
        outcome.left_out = str(error)
    except WorkerError as error:
        outcome.failed = str(error)
