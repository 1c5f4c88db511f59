"""Where a record's file may be found, in order, what the environment says of it, and the message when all fails."""

from __future__ import annotations

import os
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import WeightsError
from ..utils.files import expand_user
from .cache import cache_dir
from .catalog import Source, WeightsRecord
from .connection import redact

PACKAGE = "package:"
"""Begins the address of a file that comes with the library, relative to the package's folder."""

_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Route:
    """A place to try: an address, or a file in a folder that mirrors the sources."""

    source: Source
    place: str | Path

    @property
    def in_package(self) -> bool:
        """Whether the file comes with the library."""
        return isinstance(self.place, str) and self.place.startswith(PACKAGE)

    @property
    def remote(self) -> bool:
        """Whether the network has to be asked."""
        return isinstance(self.place, str) and not self.in_package

    def __str__(self) -> str:
        return redact(self.place) if isinstance(self.place, str) else str(self.place)


def find_routes(record: WeightsRecord) -> list[Route]:
    """Return where to look for a record's file: in the mirror, under the names of all sources, then at each source.

    Raises:
        WeightsError: ``HARDNET_MIRROR`` makes no sense.
    """
    routes = [Route(source, source.url) for source in record.sources]
    mirror = _mirror()
    if mirror is None:
        return routes
    fetched = [route.source for route in routes if route.remote]
    if isinstance(mirror, Path):
        return [*(Route(source, mirror / source.filename) for source in fetched), *routes]
    base = mirror.rstrip("/") + "/"
    return [*(Route(source, base + urllib.parse.quote(source.filename)) for source in fetched), *routes]


def offline_mode() -> bool:
    """Return what ``HARDNET_OFFLINE`` says.

    Raises:
        WeightsError: it is neither of the words for yes and no.
    """
    value = os.environ.get("HARDNET_OFFLINE", "").strip().lower()
    if value and value not in _SWITCH:
        raise WeightsError(f"HARDNET_OFFLINE is {value!r}, expected one of {', '.join(_SWITCH)}")
    return _SWITCH.get(value, False)


def report(record: WeightsRecord, failures: list[str], offline: bool) -> str:
    """Return the message when every place has failed: what happened at each, and how to supply the file by hand."""
    lines = [f"{record}: no place has the weights."]
    lines += [f"  - {failure}" for failure in failures]
    if offline:
        lines.append("Offline mode is on (HARDNET_OFFLINE): nothing was asked of the network.")
    names = ", ".join(source.filename for source in record.sources if not source.url.startswith(PACKAGE))
    if names:
        lines.append(f"To supply them by hand, put one of these files into a folder: {names};")
        lines.append('then set HARDNET_MIRROR to that folder, or name the file itself: weights="/path/to/file".')
    lines.append(f"The cache folder is {cache_dir()}.")
    return "\n".join(lines)


def _mirror() -> str | Path | None:
    value = os.environ.get("HARDNET_MIRROR", "").strip()
    if not value:
        return None
    expected = "expected an existing folder, a file:// address, or an http(s):// address without a query"
    try:
        parts = urllib.parse.urlsplit(value)
    except ValueError as error:
        raise WeightsError(f"HARDNET_MIRROR makes no sense ({error}), {expected}") from error
    if parts.scheme in ("http", "https"):
        if not parts.hostname or parts.query or parts.fragment:
            raise WeightsError(f"HARDNET_MIRROR is {redact(value)!r}, {expected}")
        return value
    folder = expand_user(value)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        folder = Path(urllib.request.url2pathname(parts.path))
    if not folder.is_dir():
        raise WeightsError(f"HARDNET_MIRROR is {redact(value)!r}, {expected}")
    return folder
