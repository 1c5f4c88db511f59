"""Choose and check torch devices; the features of the processor."""

import os
from pathlib import Path

import torch


def usable_device(device: str | int | torch.device) -> torch.device:
    """Return a device on which torch can compute.

    Args:
        device: "auto" is CUDA if available, else MPS (Apple), else the CPU; a number is that CUDA device. Under
            torchrun, "auto" and "cuda" are the GPU of the local rank.

    Raises:
        ValueError: there is no such device.
    """
    if device in ("auto", "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if device == "auto":
        kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        return torch.device(next(kind for kind, available in kinds.items() if available))
    if not isinstance(device, torch.device) and str(device).isdecimal():
        device = f"cuda:{device}"
    try:
        result = torch.device(device)
        torch.empty(1, device=result)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # as torch's backends have it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the device {str(device)!r} cannot be used here: {reason}") from None
    return result


def usable_processors() -> int:
    """Return the number of processors that this rank may use: those of the process, shared by the machine's ranks."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(count // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def cpu_flags() -> frozenset[str]:
    """Return the features of an x86 processor by Linux's names; empty on other systems."""
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0]
    except OSError:
        return frozenset()
    return frozenset(flags.split())
