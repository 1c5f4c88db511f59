"""What a benchmark ran on: the processor, the versions, and whether something else was running."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "pytorchcv", "timm", "onnxruntime", "openvino", "nncf", "pillow", "numpy")


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return the processor, its cores, torch's idea of its vector instructions, and the GPU where one is used."""
    facts: dict[str, Any] = {
        "processor": processor(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": usable_cores(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "load_before": load_average(),
    }
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def processor() -> str:
    """Return the processor's name as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return the number of logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Return how many processes wanted to run in the last minute, None where the system does not say."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def versions() -> dict[str, str]:
    """Return the versions of Python, this library and the packages that take part, as far as installed."""
    from hardnet.utils.version import __version__

    found = {"python": platform.python_version(), "hardnet": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
