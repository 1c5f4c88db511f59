"""A network in its engine, for a process of its own: built, run in turns, and its memory measured."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.candidates import build, images_of
from benchmarks.machine import MEGABYTE, peak_resident, reset_peak
from benchmarks.rows import BASELINE, Row
from hardnet.engines.base import images_at_once
from hardnet.engines.timing import timed_passes

WARM_UP = 3
"""Untimed passes after the network was built, on CPUs of one slice of the batch."""


class Network:
    """The network of a row.

    Args:
        row: what to build.
        threads: CPU threads; None is the default of the engine.
        device: where to run.
        photographs: a folder of images to calibrate int8 on.

    Raises:
        ImportError: a package is missing.
        NotImplementedError: the engine does not have this precision.
    """

    def __init__(self, row: Row, threads: int | None, device: str, photographs: Path | None) -> None:
        # The memory is counted from that of the imported packages on.
        importlib.import_module("pytorchcv.model_provider" if row.source == BASELINE else row.source)
        if find_spec(row.engine) is not None:
            importlib.import_module(row.engine)
        self._before = peak_resident("VmRSS")
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = device
        self._call = build(row, threads=threads, device=device, photographs=photographs)
        self._building = peak_resident()

    def start(self, shape: tuple[int, int, int]) -> None:
        """Warm up on images of a shape, which the following turns run on."""
        images = images_of(shape, self._device)
        self._step = partial(self._call, images)
        at_once = images if images.is_cuda else images[: images_at_once(*shape[1:])]
        for _ in range(WARM_UP):
            self._call(at_once)
        gc.collect()
        gc.freeze()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what building has freed
        self._reset = reset_peak()
        self._idle_cpu = self._idle_wall = 0.0
        self._stopped = (time.process_time(), time.perf_counter())

    def take(self, seconds: float) -> list[float]:
        """Run for about ``seconds``; return the duration of each pass."""
        self._idle_cpu += time.process_time() - self._stopped[0]
        self._idle_wall += time.perf_counter() - self._stopped[1]
        gc.disable()
        times = timed_passes(self._step, seconds)
        gc.enable()
        self._stopped = (time.process_time(), time.perf_counter())
        return times

    def finish(self) -> dict[str, Any]:
        """Return the memory in MB above that of the imported packages, and the share of a core used between turns."""
        cuda = torch.cuda.max_memory_allocated() / MEGABYTE if torch.cuda.is_initialized() else None
        return {
            "running_memory_mb": round(peak_resident() - self._before) if self._reset else None,
            "building_memory_mb": round(self._building - self._before),
            "cuda_memory_mb": None if cuda is None else round(cuda),
            "idle_cores": round(self._idle_cpu / self._idle_wall, 4) if self._idle_wall else 0.0,
        }
