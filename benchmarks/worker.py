"""The process of one row: builds it, then runs it when it is told to, and sleeps in between.

Messages are lines of JSON: the job in the first argument, commands on standard input, answers on standard output.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.candidates import Step, build, macs, reported_top1_error
from benchmarks.matrix_product import fastest_product
from benchmarks.memory import peak_cuda, peak_resident, reset_peak
from benchmarks.rows import FLOOR, Row

WARM_UP = 3
"""Passes before anything is timed."""
MOST_PASSES = 200
"""In one turn."""


def main() -> int:
    """Answer to standard output until standard input ends, which it also does when the parent process dies."""
    # What libraries print must not get among the answers: their standard output becomes standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.argv[1])
    try:
        turns = _prepare(job, answers)
    except (ImportError, NotImplementedError) as error:  # nothing is wrong: the row is not to be had here
        _say(answers, {"left_out": str(error)})
        return 0
    except Exception as error:  # whatever a model or an engine raises is this row's result, not ours
        traceback.print_exc()
        reason = (str(error).strip().splitlines() or [""])[0]
        _say(answers, {"failed": f"{type(error).__name__}: {reason}"})
        return 1
    for line in sys.stdin:
        command = json.loads(line)
        _say(answers, turns.take(command["turn"]) if "turn" in command else turns.finish())
    return 0


def _prepare(job: dict[str, Any], answers: TextIO) -> _Turns:
    row = Row(**job["row"])
    threads, device = job["threads"], job["device"]
    if threads is not None:
        torch.set_num_threads(threads)
    start = time.perf_counter()
    facts: dict[str, Any] = {}
    if row.source == FLOOR:
        product, rates = fastest_product(device)
        step: Step = product.step
        facts |= {"how": product.how, "side": product.side, "operations": product.operations, "best_gflops": rates}
    else:
        facts |= {"macs": macs(row), "reported_top1_error": reported_top1_error(row)}
        photographs = Path(job["photographs"]) if job["photographs"] else None
        step = build(row, threads=threads, device=device, photographs=photographs)
    for _ in range(WARM_UP):
        step()
    facts["build_seconds"] = round(time.perf_counter() - start, 2)
    turns = _Turns(step)
    _say(answers, facts)
    return turns


class _Turns:
    """Runs the step, times it, and watches what the process does between its turns."""

    def __init__(self, step: Step) -> None:
        self._step = step
        gc.collect()
        gc.freeze()
        self._building_peak = peak_resident()
        self._reset = reset_peak()
        self._idle_cpu = self._idle_wall = 0.0
        self._stopped = (time.process_time(), time.perf_counter())

    def take(self, seconds: float) -> dict[str, Any]:
        """Run once untimed, then for about so many seconds, at least once; return the times in seconds."""
        self._idle_cpu += time.process_time() - self._stopped[0]
        self._idle_wall += time.perf_counter() - self._stopped[1]
        self._step()
        times: list[float] = []
        gc.disable()
        while not times or (sum(times) + times[-1] <= seconds and len(times) < MOST_PASSES):
            start = time.perf_counter()
            self._step()
            times.append(time.perf_counter() - start)
        gc.enable()
        self._stopped = (time.process_time(), time.perf_counter())
        return {"times": times}

    def finish(self) -> dict[str, Any]:
        """Return what the process has used, in MB, and the share of a core that it used while it had to be still."""
        return {
            "running_memory_mb": round(peak_resident()) if self._reset else None,
            "building_memory_mb": round(self._building_peak),
            "cuda_memory_mb": None if (peak := peak_cuda()) is None else round(peak),
            "idle_cores": round(self._idle_cpu / self._idle_wall, 4) if self._idle_wall else 0.0,
        }


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
