"""A progress bar for terminals: bytes while downloading, images while predicting. Quiet everywhere else."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import TextIO

REFRESH_INTERVAL = 0.1
"""Seconds between two drawings of the bar."""

_BAR_WIDTH = 20


class ProgressBar:
    """One line on a terminal with count, share and rate; a context manager.

    Args:
        total: how many units there are; None when that is not known. May be set later, as an attribute.
        label: what is being done; cut to fit the terminal.
        unit: "B" is shown in kB, MB or GB (powers of 1000), anything else as a plain count.
        enabled: False draws nothing. Nothing is drawn either when standard error is not a terminal.
    """

    def __init__(self, total: int | None, label: str, *, unit: str = "B", enabled: bool = True) -> None:
        self.total = total
        self.label = "".join(char if char.isprintable() else "?" for char in label)
        self.unit = unit
        self.count = 0
        stream = sys.stderr  # None under pythonw
        self._stream: TextIO | None = stream if enabled and stream is not None and stream.isatty() else None
        self._start = self._drawn = time.monotonic()
        self._width = 0

    def __enter__(self) -> ProgressBar:
        self._start = time.monotonic()
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._draw()
            self._write("\n")

    def update(self, n: int = 1) -> None:
        """Count ``n`` units more; a negative number takes back what has to be done again."""
        self.count += n
        if self._stream is not None and time.monotonic() - self._drawn >= REFRESH_INTERVAL:
            self._draw()

    def _draw(self) -> None:
        if self._stream is None:
            return
        self._drawn = time.monotonic()
        columns = shutil.get_terminal_size().columns - 1  # a full last column would wrap the line on some terminals
        status = self._status()
        line = f"{self.label[: max(columns - len(status) - 2, 0)]}  {status}"[:columns]
        self._write("\r" + line.ljust(self._width))
        self._width = len(line)

    def _status(self) -> str:
        """Return the line without its label: share, bar, count, rate and the time left."""
        elapsed = time.monotonic() - self._start
        rate = self.count / elapsed if elapsed > 0 else 0.0
        speed = f"{self._amount(rate)}/s"
        if not self.total:
            return f"{self._amount(self.count)}  {speed}"
        share = min(max(self.count / self.total, 0.0), 1.0)
        filled = int(share * _BAR_WIDTH)
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        left = _clock((self.total - self.count) / rate) if rate > 0 and self.count < self.total else _clock(elapsed)
        return f"{share:4.0%} [{bar}] {self._amount(self.count)} of {self._amount(self.total)}  {speed}  {left}"

    def _amount(self, count: float) -> str:
        if self.unit != "B":
            return f"{count:.0f} {self.unit}" if count >= 10 or count == int(count) else f"{count:.1f} {self.unit}"
        for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if count >= factor:
                return f"{count / factor:.1f} {prefix}B"
        return f"{count:.0f} B"

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text.encode("ascii", "replace").decode())
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None  # a terminal that went away must not stop the work


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(min(seconds, 359_999)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
