"""Interleaved measurement: every network has a process, and the processes take turns, one at a time."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import available
from benchmarks.process import Child, ChildError, LeftOut
from benchmarks.rows import Row
from benchmarks.worker import Network

BUILD_TIMEOUT = 1800.0
"""Seconds to wait for a network."""
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


def start_worker(row: Row, protocol: Protocol) -> Child:
    """Build the network of a row in a process of its own."""
    arguments = (row, protocol.threads, protocol.device, protocol.photographs)
    return Child(Network, arguments, BUILD_TIMEOUT)


def measure(
    rows: Sequence[Row],
    protocol: Protocol,
    say: Callable[[str], None] = lambda text: None,
    start: Callable[[Row, Protocol], Child] = start_worker,
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
    workers: dict[tuple[str, ...], Child] = {}
    with contextlib.ExitStack() as stack:

        def build(these: list[Outcome]) -> None:
            row = these[0].row
            say(f"building {row}")
            with _failure_belongs_to(*these):
                if (left := available()) is not None and left < LEAST_MEMORY:
                    raise ChildError(f"only {left:.0f} MB of memory are available: measure fewer rows at once")
                workers[row.network] = start(row, protocol)
                stack.callback(workers[row.network].close)

        with ThreadPoolExecutor(BUILDERS) as pool:
            list(pool.map(build, by_network.values()))
        for shape in dict.fromkeys(row.shape for row in rows):
            these = [outcome for outcome in outcomes if outcome.row.shape == shape and outcome.row.network in workers]
            _take_turns(these, workers, protocol, say)
    return outcomes


def _take_turns(
    outcomes: list[Outcome], workers: dict[tuple[str, ...], Child], protocol: Protocol, say: Callable[[str], None]
) -> None:
    def ask(outcome: Outcome, method: str, *arguments: Any) -> Any:
        with _failure_belongs_to(outcome):
            return None if outcome.failed else workers[outcome.row.network].ask(method, *arguments)

    for outcome in outcomes:
        ask(outcome, "start", outcome.row.shape)
    for number in range(protocol.rounds):
        say(f"round {number + 1} of {protocol.rounds}")
        for outcome in outcomes if number % 2 == 0 else reversed(outcomes):
            time.sleep(protocol.pause_seconds)
            if times := ask(outcome, "take", protocol.turn_seconds):
                outcome.rounds.append(times)
    for outcome in outcomes:
        outcome.facts = ask(outcome, "finish") or {}


@contextlib.contextmanager
def _failure_belongs_to(*outcomes: Outcome) -> Iterator[None]:
    try:
        yield
    except LeftOut as error:
        for outcome in outcomes:
            outcome.left_out = str(error)
    except ChildError as error:
        for outcome in outcomes:
            outcome.failed = str(error)
