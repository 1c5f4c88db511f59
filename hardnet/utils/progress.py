"""Show a progress bar on a terminal with torch.hub's tqdm; nothing elsewhere."""

import sys
from typing import Any

from torch.hub import tqdm  # type: ignore[attr-defined]  # a plain counter if tqdm is not installed

from .text import printable


def progress_bar(total: int | None, label: str, *, unit: str = "B", enabled: bool = True, **options: Any) -> Any:
    """Return a tqdm bar on standard error that shows nothing if that is not a terminal.

    ``total`` may be None, and set later as an attribute. The unit "B" is shown in kB, MB or GB.
    """
    visible = enabled and sys.stderr is not None and sys.stderr.isatty()
    unit, scaled = (unit, True) if unit == "B" else (f" {unit}", False)
    return tqdm(total=total, desc=printable(label), unit=unit, unit_scale=scaled, disable=not visible, **options)
