"""The process of one row: build it, then run it on command. Commands and answers are lines of JSON.

The job is the first argument, commands come on standard input, answers go to standard output.
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

from benchmarks.candidates import Step, build, fastest_product, macs, reported_top1_error
from benchmarks.machine import MEGABYTE, peak_resident, reset_peak
from benchmarks.rows import FLOOR, Row
from hardnet.cli.benchmark import timed_passes

WARM_UP = 3
"""Untimed passes after the network was built."""


def main() -> int:
    """Answer until standard input ends, which it also does when the parent process dies."""
    # What libraries print must not mix with the answers: their standard output becomes standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.argv[1])
    try:
        step, facts = _prepare(job)
    except (ImportError, NotImplementedError) as error:
        _say(answers, {"left_out": str(error)})
        return 0
    except Exception as error:  # whatever a model or an engine raises is the result of this row
        traceback.print_exc()
        reason = (str(error).strip().splitlines() or [""])[0]
        _say(answers, {"failed": f"{type(error).__name__}: {reason}"})
        return 1
    turns = _Turns(step)
    _say(answers, facts)
    for line in sys.stdin:
        command = json.loads(line)
        _say(answers, turns.take(command["turn"]) if "turn" in command else turns.finish())
    return 0


def _prepare(job: dict[str, Any]) -> tuple[Step, dict[str, Any]]:
    row = Row(**job["row"])
    threads, device = job["threads"], job["device"]
    if threads is not None:
        torch.set_num_threads(threads)
    start = time.perf_counter()
    if row.source == FLOOR:
        step, facts = fastest_product(device)
    else:
        facts = {"macs": macs(row), "reported_top1_error": reported_top1_error(row)}
        photographs = Path(job["photographs"]) if job["photographs"] else None
        step = build(row, threads=threads, device=device, photographs=photographs)
    for _ in range(WARM_UP):
        step()
    return step, facts | {"build_seconds": round(time.perf_counter() - start, 2)}


class _Turns:
    """Run and time the step; measure memory, and the processor time that is used between turns."""

    def __init__(self, step: Step) -> None:
        self._step = step
        gc.collect()
        gc.freeze()
        self._building_peak = peak_resident()
        self._reset = reset_peak()
        self._idle_cpu = self._idle_wall = 0.0
        self._stopped = (time.process_time(), time.perf_counter())

    def take(self, seconds: float) -> dict[str, Any]:
        """Run for about ``seconds``; return the duration of each pass."""
        self._idle_cpu += time.process_time() - self._stopped[0]
        self._idle_wall += time.perf_counter() - self._stopped[1]
        gc.disable()
        times = timed_passes(self._step, seconds)
        gc.enable()
        self._stopped = (time.process_time(), time.perf_counter())
        return {"times": times}

    def finish(self) -> dict[str, Any]:
        """Return the memory used in MB, and the share of a core that was used between turns."""
        cuda = torch.cuda.max_memory_allocated() / MEGABYTE if torch.cuda.is_initialized() else None
        return {
            "running_memory_mb": round(peak_resident()) if self._reset else None,
            "building_memory_mb": round(self._building_peak),
            "cuda_memory_mb": None if cuda is None else round(cuda),
            "idle_cores": round(self._idle_cpu / self._idle_wall, 4) if self._idle_wall else 0.0,
        }


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
