"""The protocol: a process per network, interleaved rounds, memory, and results with machine and versions as JSON."""

from __future__ import annotations

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

from benchmarks.networks import BASELINE, Case, cost, images_of, in_engine, settled_network
from hardnet.engines.base import images_at_once
from hardnet.engines.timing import quartiles, time_pass, timed_passes
from hardnet.utils.files import write_atomically, writing
from hardnet.utils.version import __version__

PACKAGES = ("torch", "torchvision", "pytorchcv", "timm", "onnxruntime", "openvino", "nncf", "pillow", "numpy")
PAUSE_SECONDS, WARM_UP = 0.03, 3
"""Pause before each turn; untimed passes after the network was built, on CPUs of one slice of the batch."""


class Worker:
    """The network of a case, for a process of its own."""

    def __init__(self, case: Case, device: str) -> None:
        # The memory is counted from that of the imported packages on.
        importlib.import_module("pytorchcv.model_provider" if case.source == BASELINE else case.source)
        if find_spec(case.engine) is not None:
            importlib.import_module(case.engine)
        self.before, self.device = resident_megabytes("VmRSS"), device
        self.network = in_engine(settled_network(case, device), case)

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
    cases: Sequence[Case], rounds: int, turn_seconds: float, device: str, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Time all networks in turns, shape by shape; return "rows", "left_out" and "failed", ready for JSON.

    Every second round goes backwards, so that a steady drift of the machine cancels. A case that fails does not stop
    the others. It is left out if a package is missing or the engine does not have the precision.
    """
    seconds: dict[Case, list[list[float]]] = {case: [] for case in cases}
    memory: dict[Case, Any] = {}
    reasons: dict[str, dict[Case, str]] = {"left_out": {}, "failed": {}}
    processes: dict[tuple[str, ...], ProcessPoolExecutor] = {}

    def ask(case: Case, method: str, *arguments: Any) -> Any:
        if case in reasons["left_out"] or case in reasons["failed"]:
            return None
        try:
            return processes[case.network].submit(_ask, case, device, method, *arguments).result()
        except (ImportError, NotImplementedError) as error:
            reasons["left_out"][case] = str(error)
        except Exception as error:  # whatever a model or an engine raises; a process that died
            reasons["failed"][case] = f"{type(error).__name__}: {error}".splitlines()[0]

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
                    seconds[case].append(ask(case, "take", turn_seconds))
            memory |= {case: ask(case, "finish") for case in turns}
    measured = {case: times for case, times in seconds.items() if memory[case] is not None}
    entries = {key: [{"row": str(case), "reason": text} for case, text in reasons[key].items()] for key in reasons}
    return {"rows": figures(measured, memory), **entries}


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
        row = {**vars(case), "milliseconds": {name: round(1000 * value, 3) for name, value in spread.items()}}
        row["images_per_second"] = round(case.batch_size / median, 2)
        row["times_baseline"] = baseline and round(baseline / median, 3)
        row |= memory[case]
        rows.append(row | {"rounds_ms": [round(1000 * statistics.median(times), 3) for times in seconds[case]]})
    return rows


def case_of(row: dict[str, Any]) -> Case:
    """Return the case that a row of figures belongs to."""
    return Case(**{name: row[name] for name in Case.__dataclass_fields__})


def merged(earlier: dict[str, Any], measured: dict[str, Any], surroundings: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a file of results: the earlier rows, except those that were measured again, and the new."""
    check_surroundings(earlier, surroundings)
    earlier = earlier or {"networks": {}, "rows": [], "left_out": [], "failed": []}
    kinds = ("rows", "left_out", "failed")
    new = {_name(entry) for kind in kinds for entry in measured[kind]}
    content = {kind: [row for row in earlier[kind] if _name(row) not in new] + measured[kind] for kind in kinds}
    networks = dict.fromkeys((row["source"], row["model"]) for row in content["rows"])
    costs = {model: earlier["networks"].get(model) or cost(source, model) for source, model in networks}
    return {"kind": "speed", **surroundings, "networks": costs, **content}


def check_surroundings(earlier: dict[str, Any], surroundings: dict[str, Any]) -> None:
    """Raise ValueError if earlier results, if any, are of another processor or of other versions."""
    sides = [
        (part["versions"], *map(part["machine"].get, ("processor", "gpu"))) for part in (earlier, surroundings) if part
    ]
    if sides[0] != sides[-1]:
        raise ValueError("the file has results of another processor or of other versions: write to a new file")


def _name(entry: dict[str, Any]) -> str:
    return str(entry["row"] if "row" in entry else case_of(entry))


def surroundings_of(device: str, **protocol: Any) -> dict[str, Any]:
    """Return the date, the machine, the versions and the protocol."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    model, family = (re.search(rf"^{name}\s*: (.*)$", text, re.MULTILINE) for name in ("model name", "cpu family"))
    machine: dict[str, Any] = {
        "processor": f"{model[1]}, family {family[1]}" if model and family else platform.processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if torch.device(device).type == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    packages = {package.metadata["Name"].lower(): package.version for package in importlib.metadata.distributions()}
    versions = {"python": platform.python_version(), "hardnet": __version__}
    versions |= {name: packages[name] for name in PACKAGES if name in packages}
    protocol |= {"device": device, "pause_seconds": PAUSE_SECONDS, "warm_up_passes": WARM_UP}
    return {"date": date.today().isoformat(), "machine": machine, "versions": versions, "protocol": protocol}


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
