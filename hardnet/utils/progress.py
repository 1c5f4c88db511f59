"""Show a progress bar on a terminal with torch.hub's tqdm; nothing elsewhere."""

from __future__ import annotations

import sys

from torch.hub import tqdm  # type: ignore[attr-defined]  # a plain counter where tqdm is not installed

from .text import printable


class ProgressBar(tqdm):  # type: ignore[misc]
    """A tqdm bar on standard error, if that is a terminal; a context manager with ``update(n)`` and ``total``.

    Args:
        total: how many units there are; None if unknown. May be set later, as an attribute.
        label: what is being done.
        unit: "B" is shown in kB, MB or GB, anything else as a plain count.
        enabled: False shows nothing.
    """

    def __init__(self, total: int | None, label: str, *, unit: str = "B", enabled: bool = True) -> None:
        shown = enabled and sys.stderr is not None and sys.stderr.isatty()
        unit, scaled = (unit, True) if unit == "B" else (f" {unit}", False)
        super().__init__(total=total, desc=printable(label), unit=unit, unit_scale=scaled, disable=not shown)
