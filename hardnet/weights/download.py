"""Fetch a record's weights: from the package, the cache, a mirror or the sources. Every result is digest-checked."""

import contextlib
import logging
import os
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ..utils.errors import WeightsError
from ..utils.files import expand_user, write_atomically
from ..utils.progress import progress_bar
from .catalog import PACKAGE, Source, WeightsRecord
from .files import read_file, unpack_archive
from .transfer import Cause, Report, TransferError, download, is_valid, redact

__all__ = ["VerifiedFile", "cache_dir", "fetch", "find_cached"]

logger = logging.getLogger(__name__)

_LOCK_TIMEOUT = 600  # seconds that another process may take for the same weights
_Place = tuple[Source, str | Path]  # a source and the URL or file to read it from
Progress: TypeAlias = bool | Report


@dataclass(frozen=True)
class VerifiedFile:
    """A checkpoint with the right digest."""

    path: Path
    content: bytes
    """The verified bytes. Load these: the file at ``path`` may have changed since."""
    source: Source
    """The source whose digest was checked."""


def cache_dir() -> Path:
    """Return the folder of downloaded weights: ``checkpoints`` in torch.hub's folder, which follows ``TORCH_HOME``."""
    import torch.hub

    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch(record: WeightsRecord, *, progress: Progress = True) -> VerifiedFile:
    """Return a record's verified file: from the package or the cache, else from the mirror or the sources.

    ``HARDNET_MIRROR``, a folder or an http(s) address, is tried before the sources. With ``HARDNET_OFFLINE=1`` no
    network request is made.

    Args:
        record: a record of the catalogue, or one of your own.
        progress: show a progress bar on a terminal; or a function of the bytes so far and in total (None if unknown).

    Raises:
        WeightsError: the file could not be downloaded from any source, the cache cannot be written, or
            ``HARDNET_MIRROR`` is invalid.
    """
    import filelock

    if cached := find_cached(record, remove_damaged=True):
        return cached
    lock = filelock.FileLock(cache_dir() / f"hardnet-{record.model}-{record.tag.lower()}.lock", timeout=_LOCK_TIMEOUT)
    with contextlib.ExitStack() as stack:
        try:
            cache_dir().mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock)
        except (OSError, NotImplementedError) as error:  # filelock.Timeout is an OSError
            # A second download does no harm.
            logger.warning("continuing without a lock on %s: %s", lock.lock_file, error)
        # Look again: another process may have downloaded it meanwhile.
        return find_cached(record, remove_damaged=True) or _fetch_first(record, progress)


def find_cached(record: WeightsRecord, *, remove_damaged: bool = False) -> VerifiedFile | None:
    """Return a record's verified file from the package or the cache, or None; makes no network request.

    A warning names a damaged file; with ``remove_damaged`` it is removed from the cache.
    """
    for source in record.sources:
        in_package = _package_path(source)
        path = in_package or cache_dir() / record.cache_filename(source)
        if not path.exists():
            continue
        try:
            content = read_file(path)
        except WeightsError as error:
            logger.warning("%s %s and is ignored", path, error)
            continue
        if source.digest.matches(content):
            return _verified(path, content, source)
        logger.warning("%s is damaged", path)
        if remove_damaged and in_package is None:
            with contextlib.suppress(OSError):
                path.unlink()
    return None


def _package_path(source: Source) -> Path | None:
    relative = source.url.removeprefix(PACKAGE)
    return None if relative == source.url else Path(__file__).parent.parent / relative


def _places(record: WeightsRecord) -> list[_Place]:
    """Return the sources in order: in the mirror, then at their own URLs."""
    published: list[_Place] = [(source, _package_path(source) or source.url) for source in record.sources]
    mirror = os.environ.get("HARDNET_MIRROR", "").strip()
    if not mirror:
        return published
    if is_valid(mirror) and not {"?", "#"} & set(mirror):
        base = mirror.rstrip("/") + "/"
        return [*((source, base + urllib.parse.quote(source.filename)) for source in record.sources), *published]
    folder = expand_user(mirror)
    if not os.path.isdir(folder):  # noqa: PTH112  Path.is_dir raises an error if the name is too long
        # The message does not show the value, which may hold a password or a token.
        expected = "an existing folder or an http(s):// address without a query, its special characters percent-encoded"
        raise WeightsError(f"HARDNET_MIRROR is not valid; expected {expected}")
    return [*((source, folder / source.filename) for source in record.sources), *published]


def is_offline() -> bool:
    """Return whether ``HARDNET_OFFLINE`` forbids network requests: any value but 0, false, no, off or none at all."""
    return os.environ.get("HARDNET_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


def _fetch_first(record: WeightsRecord, progress: Progress) -> VerifiedFile:
    failures: dict[str, Cause] = {}
    for source, place in _places(record):
        name = redact(place) if isinstance(place, str) else str(place)
        if isinstance(place, str) and is_offline():
            failures[f"  - {name}: not tried, offline mode is on (HARDNET_OFFLINE)"] = "network"
            continue
        try:
            return _fetch_from(record, source, place, progress)
        except WeightsError as error:
            failures[f"  - {name}: {error}"] = error.cause
            # A mirror folder needs only one of the files.
            level = logging.INFO if isinstance(place, Path) and not place.exists() else logging.WARNING
            logger.log(level, "%s cannot be loaded from %s: %s", record, name, error)
        except OSError as error:  # of the disk: those of the network are WeightsErrors
            advice = "Free space, make it writable, or set TORCH_HOME to another folder"
            raise WeightsError(f"the cache folder {cache_dir()} cannot be written: {error}. {advice}") from error
    names = ", ".join(source.filename for source in record.sources)
    lines = (
        f"{record} could not be downloaded from any source.",
        *failures,
        f"To supply the weights yourself, put one of these files into a folder: {names};",
        'then set HARDNET_MIRROR to that folder, or pass the file itself: weights="/path/to/file".',
        f"The cache folder is {cache_dir()}.",
    )
    failure = WeightsError("\n".join(lines))
    causes: tuple[Cause, ...] = ("damaged", "host", "network")
    failure.cause = next((cause for cause in causes if cause in failures.values()), None)
    raise failure


def _fetch_from(record: WeightsRecord, source: Source, place: str | Path, progress: Progress) -> VerifiedFile:
    target = cache_dir() / record.cache_filename(source)
    if isinstance(place, Path):
        content = _checked(read_file(place), source)
        try:
            with write_atomically(target) as file:
                file.write(content)
        except OSError as error:
            logger.warning("%s is used without a copy in the cache: %s", place, error)
            target = place
    else:
        with write_atomically(target) as file:  # opened first: nothing is downloaded if the cache cannot be written
            content = _download(place, record, source, progress)
            file.write(content)
    return _verified(target, content, source)


def _download(url: str, record: WeightsRecord, source: Source, progress: Progress) -> bytes:
    logger.info("downloading %s from %s", record, redact(url))
    with progress_bar(None, str(record), enabled=progress is True) as bar:

        def update_bar(received: int, total: int | None) -> None:
            bar.total = total
            bar.update(received - bar.n)

        report = progress if callable(progress) else update_bar
        return download(url, report, lambda content: _checked(content, source))


def _checked(content: bytes, source: Source) -> bytes:
    """Return the checkpoint in what a source served, after the digest check."""
    served = f"{len(content)} bytes that start with {content[:16]!r}"
    if source.filename.endswith(".zip"):
        try:
            content = unpack_archive(content)
        except WeightsError as error:
            raise TransferError(f"{error}; got {served}", cause="damaged") from error
    if not source.digest.matches(content):
        raise TransferError(f"not the file with the digest {source.digest}; got {served}", cause="damaged")
    return content


def _verified(path: Path, content: bytes, source: Source) -> VerifiedFile:
    if source.digest.weak:
        logger.warning("%s was checked with a weak digest (%s), which does not detect forgery", path, source.digest)
    return VerifiedFile(path, content, source)
