"""The process of one network in its engine: build it, then run it on command. Commands and answers are lines of JSON.

The job is the first argument, commands come on standard input, answers go to standard output.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.candidates import Step, build, images_of
from benchmarks.machine import MEGABYTE, peak_resident, reset_peak
from benchmarks.rows import BASELINE, Row
from hardnet.cli.benchmark import timed_passes

WARM_UP = 3
"""Untimed passes after the network was built."""


def main() -> int:
    """Answer until standard input ends, which it also does when the parent process dies."""
    # What libraries print must not mix with the answers: their standard output becomes standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.argv[1])
    row = Row(**job["row"])
    try:
        before = resident_without(row)
        call = _prepare(row, job)
    except (ImportError, NotImplementedError) as error:
        _say(answers, {"left_out": str(error)})
        return 0
    except Exception as error:  # whatever a model or an engine raises is the result of this row
        traceback.print_exc()
        reason = (str(error).strip().splitlines() or [""])[0]
        _say(answers, {"failed": f"{type(error).__name__}: {reason}"})
        return 1
    building = peak_resident()
    _say(answers, {})
    for line in sys.stdin:
        command = json.loads(line)
        if "shape" in command:
            turns = _Turns(partial(call, images_of(command["shape"], job["device"])), before, building)
            _say(answers, {"ready": True})
        else:
            _say(answers, turns.take(command["turn"]) if "turn" in command else turns.finish())
    return 0


def resident_without(row: Row) -> float:
    """Import the packages of a row, and return the resident memory in MB before anything is built.

    Raises:
        ImportError: the package of the network is missing.
    """
    importlib.import_module("pytorchcv.model_provider" if row.source == BASELINE else row.source)
    if find_spec(row.engine) is not None:
        importlib.import_module(row.engine)
    return peak_resident("VmRSS")


def _prepare(row: Row, job: dict[str, Any]) -> Callable[[torch.Tensor], Any]:
    if job["threads"] is not None:
        torch.set_num_threads(job["threads"])
    photographs = Path(job["photographs"]) if job["photographs"] else None
    return build(row, threads=job["threads"], device=job["device"], photographs=photographs)


class _Turns:
    """Run and time the step; measure memory, and the processor time that is used between turns."""

    def __init__(self, step: Step, before: float, building: float) -> None:
        self._step, self._before, self._building = step, before, building
        for _ in range(WARM_UP):
            step()
        gc.collect()
        gc.freeze()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what building has freed
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
        """Return the memory in MB above that of the imported packages, and the share of a core used between turns."""
        cuda = torch.cuda.max_memory_allocated() / MEGABYTE if torch.cuda.is_initialized() else None
        return {
            "running_memory_mb": round(peak_resident() - self._before) if self._reset else None,
            "building_memory_mb": round(self._building - self._before),
            "cuda_memory_mb": None if cuda is None else round(cuda),
            "idle_cores": round(self._idle_cpu / self._idle_wall, 4) if self._idle_wall else 0.0,
        }


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
