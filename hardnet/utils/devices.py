"""Choose and check torch devices."""

from __future__ import annotations

import torch


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device on which something can be computed; "auto" is CUDA where there is some, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
        torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # as torch's backends have it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the device {str(device)!r} cannot be used here: {reason}") from None
    if wanted.type == "meta":
        raise ValueError("the device 'meta' holds no values, nothing can be computed on it")
    return wanted
