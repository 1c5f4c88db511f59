"""Benchmark results made up for the tests: fake workers whose times are known, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import Outcome, Protocol, Row, measure
from benchmarks.process import WorkerError
from benchmarks.rows import BASELINE, FLOOR, OURS

SHAPE = (1, 224, 224)
FLOOR_ROW = Row(FLOOR, "matrix product", "torch", "fp32", *SHAPE)
BASELINE_ROW = Row(BASELINE, "hardnet68", "eager", "fp32", *SHAPE)
TORCH_ROW = Row(OURS, "hardnet68", "torch", "fp32", *SHAPE)
INT8_ROW = Row(OURS, "hardnet68", "openvino", "int8", *SHAPE)
PEER_ROW = Row("torchvision", "resnet50", "eager", "fp32", *SHAPE)
ROWS = [FLOOR_ROW, BASELINE_ROW, PEER_ROW, TORCH_ROW, INT8_ROW]
SECONDS = {FLOOR_ROW: 0.1, BASELINE_ROW: 0.08, PEER_ROW: 0.07, TORCH_ROW: 0.05, INT8_ROW: 0.02}
ERRORS = {BASELINE_ROW: 23.52, PEER_ROW: 23.87, TORCH_ROW: 23.52, INT8_ROW: None}


class FakeWorker:
    """Takes ``SECONDS`` a pass by its own word, and writes down what happens to it."""

    def __init__(self, row: Row, log: list[tuple[str, Row]]) -> None:
        self.row, self._log = row, log
        self._next: dict[str, Any] = {
            "macs": 4_000_000_000,
            "reported_top1_error": ERRORS.get(row),
            "build_seconds": 1.5,
        }
        if row.source == FLOOR:
            self._next |= {"how": "mm", "side": 2048, "operations": 10_000_000_000, "best_gflops": {"mm": 100.0}}

    def tell(self, command: dict[str, Any]) -> None:
        self._log.append((next(iter(command)), self.row))
        if "turn" in command:
            seconds = SECONDS[self.row]
            self._next = {"times": [seconds, 1.1 * seconds, 0.9 * seconds]}
        else:
            memory = {"running_memory_mb": 500, "building_memory_mb": 1700, "cuda_memory_mb": None}
            self._next = {**memory, "idle_cores": 0.0}

    def answer(self, timeout: float) -> dict[str, Any]:
        assert timeout > 10
        return self._next

    def close(self) -> None:
        self._log.append(("close", self.row))


def fake_start(log: list[tuple[str, Row]]) -> Callable[[Row, Protocol], FakeWorker]:
    def start(row: Row, protocol: Protocol) -> FakeWorker:
        log.append(("build", row))
        return FakeWorker(row, log)

    return start


def dying_start(log: list[tuple[str, Row]], victim: Row, turns: int) -> Callable[[Row, Protocol], FakeWorker]:
    """As ``fake_start``, but one row's worker dies after so many turns."""

    class Dying(FakeWorker):
        left = turns + 1

        def answer(self, timeout: float) -> dict[str, Any]:
            self.left -= 1
            if self.left < 0:
                raise WorkerError("killed by SIGSEGV")
            return super().answer(timeout)

    def start(row: Row, protocol: Protocol) -> FakeWorker:
        return Dying(row, log) if row == victim else FakeWorker(row, log)

    return start


def made_results() -> dict[str, Any]:
    """Results of two groups, 224 x 224 and 1024 x 1024."""
    from benchmarks.results import as_results, surroundings_of

    protocol = Protocol(rounds=2, pause_seconds=0, threads=2)
    first = measure(ROWS, protocol, start=fake_start([]))
    large = [Outcome(Row(**{**vars(o.row), "height": 1024, "width": 1024}), o.facts, o.rounds) for o in first[:2]]
    return as_results([first, large], protocol, surroundings_of("cpu"))
