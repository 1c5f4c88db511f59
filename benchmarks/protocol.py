"""The protocol: a process per network, interleaved rounds, memory, and results with machine and versions as JSON."""

import contextlib
import ctypes
import gc
import importlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.util import find_spec
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.networks import BASELINE, Case, build, images_of
from hardnet.engines.base import images_at_once
from hardnet.engines.timing import quartiles, time_pass, timed_passes
from hardnet.utils.devices import usable_processors
from hardnet.utils.files import write_atomically, writing
from hardnet.utils.version import __version__

PACKAGES = ("torch", "torchvision", "pytorchcv", "timm", "onnxruntime", "openvino", "nncf", "pillow", "numpy")
PAUSE_SECONDS, TURN_SECONDS, WARM_UP = 0.03, 0.3, 3
"""Pause before each turn; length of a turn; untimed passes after the network was built, on CPUs of one slice."""


class Worker:
    """The network of a case, for a process of its own."""

    def __init__(self, case: Case, device: str) -> None:
        # The memory is counted from that of the imported packages on.
        importlib.import_module("pytorchcv.model_provider" if case.source == BASELINE else case.source)
        if find_spec(case.engine) is not None:
            importlib.import_module(case.engine)
        self.before, self.device = resident_megabytes("VmRSS"), device
        self.network = build(case, device)

    def start(self, shape: tuple[int, int, int]) -> None:
        """Warm up on images of a shape, which the following turns run on."""
        self.images = images_of(shape, self.device)
        at_once = len(self.images) if self.images.is_cuda else images_at_once(*shape[1:])
        for _ in range(WARM_UP):
            time_pass(self.network, self.images[:at_once])
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what building has freed
            with contextlib.suppress(OSError):  # not allowed: the peak is that of building
                Path("/proc/self/clear_refs").write_text("5")

    def take(self, seconds: float) -> list[float]:
        """Run for about ``seconds``; return the duration of each pass."""
        return timed_passes(lambda: time_pass(self.network, self.images), seconds)

    def finish(self) -> dict[str, float | None]:
        """Return the peak memory since :meth:`start`."""
        cuda = round(torch.cuda.max_memory_allocated() / 1e6) if torch.cuda.is_initialized() else None
        return {"running_memory_mb": round(resident_megabytes("VmHWM") - self.before), "cuda_memory_mb": cuda}


def resident_megabytes(field: str) -> float:
    """Return the memory of this process now ("VmRSS") or at its peak ("VmHWM"); 0 on other systems than Linux."""
    status = Path("/proc/self/status")  # getrusage includes the peak of the parent process
    values = re.findall(rf"^{field}:\s*(\d+) kB$", status.read_text() if status.exists() else "", re.MULTILINE)
    return int(values[0]) * 1024 / 1e6 if values else 0.0


_workers: list[Worker] = []  # in the process of a network: its worker


def _ask(case: Case, device: str, method: str, *arguments: Any) -> Any:
    if not _workers:
        _workers.append(Worker(case, device))
    return getattr(_workers[0], method)(*arguments)


def measure(
    cases: Sequence[Case], rounds: int, device: str, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Time all networks in turns, shape by shape; return a row per case, ready for JSON.

    Every second round goes backwards, so that a steady drift of the machine cancels. A case that cannot be measured
    does not stop the others: ``say`` gets the reason.
    """
    seconds: dict[Case, list[list[float]]] = {case: [] for case in cases}
    memory: dict[Case, Any] = {}
    failures: set[Case] = set()
    processes: dict[tuple[str, ...], ProcessPoolExecutor] = {}

    def ask(case: Case, method: str, *arguments: Any) -> Any:
        if case in failures:
            return None
        try:
            return processes[case.network].submit(_ask, case, device, method, *arguments).result()
        except Exception as error:  # whatever a model or an engine raises; a process that died
            failures.add(case)
            say(f"no figures for {case}: {type(error).__name__}: {error}".splitlines()[0])

    with contextlib.ExitStack() as stack:
        for shape in dict.fromkeys(case.shape for case in cases):
            turns = [case for case in cases if case.shape == shape]
            for case in turns:
                say(f"preparing {case}")
                if case.network not in processes:
                    # What libraries print must not mix with the results.
                    process = ProcessPoolExecutor(1, get_context("spawn"), os.dup2, (2, 1))
                    processes[case.network] = stack.enter_context(process)
                ask(case, "start", shape)
            for number in range(rounds):
                say(f"{shape}: round {number + 1} of {rounds}")
                for case in turns if number % 2 == 0 else reversed(turns):
                    time.sleep(PAUSE_SECONDS)
                    seconds[case].append(ask(case, "take", TURN_SECONDS))
            memory |= {case: ask(case, "finish") for case in turns}
    return figures({case: times for case, times in seconds.items() if case not in failures}, memory)


def figures(seconds: dict[Case, list[list[float]]], memory: dict[Case, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per case.

    ``times_baseline`` is the ratio of medians to pytorchcv's model of the same name: above 1 is faster.
    """
    spreads = {case: quartiles(list(chain.from_iterable(rounds))) for case, rounds in seconds.items()}
    baselines = {(case.model, case.shape): spread[1] for case, spread in spreads.items() if case.source == BASELINE}
    rows = []
    for case, (lower, median, upper) in spreads.items():
        baseline = baselines.get((case.model, case.shape))
        spread = {"median": median, "lower_quartile": lower, "upper_quartile": upper}
        row = {**case._asdict(), "milliseconds": {name: round(1000 * value, 3) for name, value in spread.items()}}
        row["images_per_second"] = round(case.batch_size / median, 2)
        row["times_baseline"] = baseline and round(baseline / median, 3)
        row |= memory[case]
        rows.append(row | {"rounds_ms": [round(1000 * statistics.median(times), 3) for times in seconds[case]]})
    return rows


def case_of(row: dict[str, Any]) -> Case:
    """Return the case that a row of figures belongs to."""
    return Case(*(row[name] for name in Case._fields))


def open_results(path: Path | None, device: str, **protocol: Any) -> dict[str, Any]:
    """Return the results of a file, if there is one, with the date, the machine, the versions and the protocol.

    Raises:
        ValueError: the file's results are of another machine or of other versions.
    """
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    protocol |= {"device": device, "pause_seconds": PAUSE_SECONDS, "warm_up_passes": WARM_UP, "load_before": load}
    packages = {package.metadata["Name"].lower(): package.version for package in importlib.metadata.distributions()}
    versions = {"python": platform.python_version(), "hardnet": __version__}
    versions |= {name: packages[name] for name in PACKAGES if name in packages}
    now = {"machine": _machine(device), "versions": versions}
    earlier = read_json(path)
    if any(earlier.get(key, value) != value for key, value in now.items()):
        raise ValueError(f"{path} has results of another machine or of other versions: write to a new file")
    content = {key: earlier.get(key, empty) for key, empty in (("networks", {}), ("rows", []))}
    return {"date": date.today().isoformat(), **now, "protocol": protocol, **content}


def _machine(device: str) -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    model, family = (re.search(rf"^{name}\s*: (.*)$", text, re.MULTILINE) for name in ("model name", "cpu family"))
    machine: dict[str, Any] = {
        "processor": f"{model[1]}, family {family[1]}" if model and family else platform.processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": usable_processors(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
    }
    if torch.device(device).type == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return machine


def add_rows(results: dict[str, Any], rows: list[dict[str, Any]], path: Path | None) -> None:
    """Put rows in the place of the earlier ones of the same cases, and write the file."""
    keys = (*Case._fields, "decoding", "pixels")
    cases = [[row.get(key) for key in keys] for row in rows]
    results["rows"] = [row for row in results["rows"] if [row.get(key) for key in keys] not in cases] + rows
    if path is not None:
        write_json(path, results)


def read_json(path: Path | None) -> dict[str, Any]:
    """Return the content of a file of results; {} if there is none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path and path.exists() else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write results with a row per line: the whole file, or leave what was there."""
    fields = []
    for key, value in content.items():
        text = json.dumps(value, allow_nan=False)
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(row, allow_nan=False) for row in value) + "\n ]"
        fields.append(f' "{key}": {text}')
    with writing(path), write_atomically(path) as file:
        file.write(("{\n" + ",\n".join(fields) + "\n}\n").encode())
