"""From a record of the catalogue to verified bytes: the cache, the mirror, the sources. Knows no tensors.

No byte leaves this module unverified: every function that returns a file has computed its digest over exactly
the bytes that it returns.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import WeightsError
from ..utils.progress import ProgressBar
from . import cache
from .archive import ArchiveError, unpack_archive
from .cache import CacheError, cache_dir
from .catalog import Source, WeightsRecord
from .connection import Policy, TransferError, redact
from .digests import identify, matches
from .routes import PACKAGE, Route, find_routes, offline_mode, report
from .transfer import check_start, download

__all__ = ["Policy", "VerifiedFile", "cache_dir", "fetch", "find_cached", "identify", "matches", "unpack_archive"]

logger = logging.getLogger(__name__)

_DEFAULT_POLICY = Policy()


@dataclass(frozen=True)
class VerifiedFile:
    """A checkpoint whose digest was found right."""

    path: Path
    """Where the file lies."""
    content: bytes
    """What was verified. Load from here: the file at ``path`` may have changed since."""
    source: Source
    """Whose digest it has."""


def fetch(record: WeightsRecord, *, progress: bool = True, policy: Policy = _DEFAULT_POLICY) -> VerifiedFile:
    """Return a record's verified file: from the package or the cache, or else from the mirror or its sources.

    ``HARDNET_MIRROR``, a folder or an http(s) address, is tried before the sources; with ``HARDNET_OFFLINE=1``
    nothing is asked of the network.

    Args:
        record: a record of the catalogue, or one of your own.
        progress: show a progress bar, on a terminal.
        policy: limits on time, attempts and size.

    Raises:
        WeightsError: no place had the file, the cache cannot be written, or an environment variable makes no sense.
    """
    found = find_cached(record, policy=policy)
    if found is not None:
        return found
    routes, offline = find_routes(record), offline_mode()
    lock_file = cache_dir() / f"hardnet-{record.model}-{record.tag.lower()}.lock"
    with cache.turn(lock_file, policy.lock_timeout):
        found = find_cached(record, policy=policy)  # another process may have brought it while we waited
        return found if found is not None else _fetch_first(record, routes, offline, progress, policy)


def find_cached(record: WeightsRecord, *, policy: Policy = _DEFAULT_POLICY) -> VerifiedFile | None:
    """Return a record's verified file from the package or the cache, or None; never asks the network.

    A damaged file in the cache is set aside, and a log line names it.
    """
    for source in record.sources:
        if source.url.startswith(PACKAGE):
            try:
                return _read_package(source, policy)
            except TransferError as error:
                logger.warning("%s: %s", source.url, error)
        else:
            found = _read_cached(cache_dir() / record.cache_filename(source), source, policy)
            if found is not None:
                return found
    return None


def _read_package(source: Source, policy: Policy) -> VerifiedFile:
    path = Path(__file__).parent.parent / source.url.removeprefix(PACKAGE)
    try:
        content, _ = cache.read_bounded(path, policy.max_bytes)
    except OSError as error:
        raise TransferError(f"the installation is incomplete, install the library again: {error}") from error
    return _verified(path, _unpacked(content, source, policy), source)


def _read_cached(path: Path, source: Source, policy: Policy) -> VerifiedFile | None:
    for _ in range(3):  # more than once only where other processes replace the file under our eyes
        try:
            if not path.is_file():
                return None
            content, read_from = cache.read_bounded(path, policy.max_bytes)
        except OSError as error:
            logger.warning("%s cannot be read and is ignored: %s", path, error)
            return None
        if matches(content, source.digest):
            return _verified(path, content, source)
        if not cache.set_aside(path, content, read_from):
            return None
    return None


def _unpacked(content: bytes, source: Source, policy: Policy) -> bytes:
    """Return the checkpoint in what a source served, its digest found right."""
    if len(content) > policy.max_bytes:
        raise TransferError(f"the file is larger than {policy.max_bytes} bytes")
    check_start(content[:64], source.archived)
    if source.archived:
        content = unpack_archive(content, max_bytes=policy.max_bytes)
    if not matches(content, source.digest):
        raise TransferError(
            f"these {len(content)} bytes are another file or damaged: the digest is not {source.digest}"
        )
    return content


def _verified(path: Path, content: bytes, source: Source) -> VerifiedFile:
    if source.digest.weak:
        logger.warning(
            "%s was checked against a weak digest only (%s): damage would show, tampering might not",
            path,
            source.digest,
        )
    return VerifiedFile(path, content, source)


def _fetch_first(
    record: WeightsRecord, routes: list[Route], offline: bool, progress: bool, policy: Policy
) -> VerifiedFile:
    failures = []
    for number, route in enumerate(routes, start=1):
        if offline and route.remote:
            failures.append(f"{route}: not asked, offline mode is on")
            continue
        try:
            return _fetch_one(record, route, progress, policy)
        except (TransferError, ArchiveError) as error:
            failures.append(f"{route}: {error}")
            following = ", trying the next source" if number < len(routes) else ""
            # A folder need not hold every source's file: one will do.
            expected = isinstance(route.place, Path) and not route.place.exists()
            level = logging.INFO if expected else logging.WARNING
            logger.log(level, "%s could not be had from %s: %s%s", record, route, error, following)
    raise WeightsError(report(record, failures, offline))


def _fetch_one(record: WeightsRecord, route: Route, progress: bool, policy: Policy) -> VerifiedFile:
    if isinstance(route.place, Path):
        return _copy(record, route.source, route.place, policy)
    if route.in_package:
        return _read_package(route.source, policy)
    return _download(record, route.source, route.place, progress, policy)


def _copy(record: WeightsRecord, source: Source, origin: Path, policy: Policy) -> VerifiedFile:
    """Bring a file from a folder into the cache, so that it is there when the folder is not."""
    try:
        content, _ = cache.read_bounded(origin, policy.max_bytes)
    except FileNotFoundError as error:
        raise TransferError("no such file") from error
    except OSError as error:
        raise TransferError(f"the file cannot be read: {error}") from error
    content = _unpacked(content, source, policy)
    target = cache_dir() / record.cache_filename(source)
    try:
        with cache.temporary(target) as file:
            file.write(content)
            file.commit()
    except CacheError as error:
        if source.archived:
            raise
        logger.warning("%s is used where it lies: %s", origin, error)
        return _verified(origin, content, source)
    return _verified(target, content, source)


def _download(record: WeightsRecord, source: Source, url: str, progress: bool, policy: Policy) -> VerifiedFile:
    target = cache_dir() / record.cache_filename(source)
    with cache.temporary(target) as file:  # opened first: what cannot be kept is not worth downloading
        logger.info("downloading %s from %s", record, redact(url))
        content = _transferred(source, url, file, progress, policy)
        if source.archived:
            file.restart()
            file.write(content)
        file.commit()
    return _verified(target, content, source)


def _transferred(source: Source, url: str, file: cache.Temporary, progress: bool, policy: Policy) -> bytes:
    def attempt(resume: bool) -> bool:
        with ProgressBar(None, source.filename, enabled=progress) as bar:
            return download(url, file, archived=source.archived, policy=policy, bar=bar, resume=resume)

    pieced = attempt(resume=True)
    try:
        return _unpacked(file.read(), source, policy)
    except (TransferError, ArchiveError) as error:
        if not pieced:
            raise
        logger.warning("%s, put together from ranges: %s; once more from the start", redact(url), error)
    file.restart()
    attempt(resume=False)
    return _unpacked(file.read(), source, policy)
