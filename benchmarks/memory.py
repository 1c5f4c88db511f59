"""How much memory a process holds, as the operating system counts it."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_MEGABYTE = 1_000_000


def peak_resident() -> float:
    """Return the most memory that this process has had resident, in MB: libraries and weights included.

    Linux: since the last :func:`reset_peak`. Elsewhere: since the process began, and 0 on Windows.
    """
    # getrusage is of no use on Linux: a new process takes over its parent's peak.
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / _MEGABYTE
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MEGABYTE


def reset_peak() -> bool:
    """Let the peak begin again from what is resident now; False where the system does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def available() -> float | None:
    """Return the memory in MB that can still be had without swapping, None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return found[0] * 1024 / _MEGABYTE if found else None


def peak_cuda() -> float | None:
    """Return the most memory in MB that torch's tensors have had on the GPU, None where CUDA was not used."""
    return torch.cuda.max_memory_allocated() / _MEGABYTE if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call,unused-ignore]
