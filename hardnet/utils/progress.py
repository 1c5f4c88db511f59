"""Show a progress bar on a terminal with torch.hub's tqdm; nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar

from torch.hub import tqdm  # type: ignore[attr-defined]  # a plain counter where tqdm is not installed

from .text import printable

watcher: ContextVar[Callable[[int, int | None], None] | None] = ContextVar("watcher", default=None)
"""What to call with the units done and in total (None if unknown) as they change, with or without a terminal."""


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
        self._done, self._watch = 0, watcher.get()

    def update(self, n: int = 1) -> object:
        """Count ``n`` more units."""
        self._done += n
        if self._watch is not None:
            self._watch(self._done, self.total)
        return super().update(n)
