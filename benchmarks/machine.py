"""Describe the machine and the installed versions; measure the memory of a process."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from hardnet.utils.version import __version__

PACKAGES = ("torch", "torchvision", "pytorchcv", "timm", "onnxruntime", "openvino", "nncf", "pillow", "numpy")
MEGABYTE = 1_000_000


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return processor, cores, vector instructions, threads, load average, and the GPU if one is used."""
    facts: dict[str, Any] = {
        "processor": processor(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if torch.device(device).type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts


def processor() -> str:
    """Return the name of the processor as reported by the system, on Linux with its family."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = dict(re.findall(r"^(model name|cpu family)\s*: (.*)$", text, re.MULTILINE))
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return found["model name"] + (f", family {found['cpu family']}" if "cpu family" in found else "")


def versions() -> dict[str, str]:
    """Return the versions of Python, this library and the installed packages among ``PACKAGES``."""
    found = {"python": platform.python_version(), "hardnet": __version__}
    installed = {package.metadata["Name"].lower(): package.version for package in importlib.metadata.distributions()}
    return found | {package: installed[package] for package in PACKAGES if package in installed}


def peak_resident(field: str = "VmHWM") -> float:
    """Return the peak resident memory of this process in MB; on Linux since the last :func:`reset_peak`.

    "VmRSS" instead of "VmHWM" is the memory that is resident now, on Linux only.
    """
    status = Path("/proc/self/status")  # on Linux getrusage includes the peak of the parent process
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / MEGABYTE
    try:
        import resource
    except ImportError:
        return 0.0  # Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE


def reset_peak() -> bool:
    """Restart the peak from the memory that is resident now; return False if the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def available() -> float | None:
    """Return the memory in MB that is available without swapping, None if unknown."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return found[0] * 1024 / MEGABYTE if found else None
