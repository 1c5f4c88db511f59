"""The cache folder: reading what is in it, writing without leaving halves, and taking turns."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ..utils.errors import WeightsError
from ..utils.files import create_part, open_regular, remove_orphans

logger = logging.getLogger(__name__)


class CacheError(WeightsError):
    """The cache folder cannot be written, or has no room."""


def cache_dir() -> Path:
    """Return the folder of the downloaded weights: ``checkpoints`` in torch.hub's, which follows ``TORCH_HOME``."""
    import torch.hub

    return Path(torch.hub.get_dir()) / "checkpoints"


def read_bounded(path: Path, max_bytes: int) -> tuple[bytes, os.stat_result]:
    """Return a file's bytes, read once, at most one more than ``max_bytes``; and which file it was."""
    with open_regular(path) as file:
        return file.read(max_bytes + 1), os.fstat(file.fileno())


def set_aside(path: Path, content: bytes, read_from: os.stat_result) -> bool:
    """Rename a bad file out of the way; return whether the path now deserves another look.

    The new name depends on the content: the same damage, found again and again, does not fill the disk.
    """
    aside = path.with_name(f"{path.name}.bad-{hashlib.sha256(content).hexdigest()[:8]}")
    try:
        now = path.stat()
        if (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns) != (
            read_from.st_dev,
            read_from.st_ino,
            read_from.st_size,
            read_from.st_mtime_ns,
        ):
            return True  # another process has put a new file there meanwhile
        path.replace(aside)
    except FileNotFoundError:
        return True
    except OSError as error:
        logger.warning("%s is damaged and is ignored; it cannot be set aside: %s", path, error)
        return False
    logger.warning("%s is damaged; it was set aside as %s", path, aside.name)
    return False


class Temporary:
    """A file beside its target with a name of its own, which becomes the target in one step or vanishes."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._path, self._file = create_part(target.parent, f"{target.name}.")
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def write(self, chunk: bytes) -> None:
        """Append ``chunk``."""
        with _cache_errors(self._target.parent):
            self._file.write(chunk)
        self._size += len(chunk)

    def restart(self) -> None:
        """Drop everything written so far."""
        with _cache_errors(self._target.parent):
            self._file.seek(0)
            self._file.truncate()
        self._size = 0

    def read(self) -> bytes:
        """Return everything written so far, as the file system gives it back."""
        with _cache_errors(self._target.parent):
            self._file.seek(0)
            return self._file.read()

    def commit(self) -> None:
        """Give the file its name; what stood there before is replaced."""
        with _cache_errors(self._target.parent):
            try:
                self._file.flush()
                if os.name == "nt":  # Windows renames closed files only
                    self._file.close()
                self._path.replace(self._target)  # still locked, so that it is no orphan in between
            finally:
                self._file.close()

    def discard(self) -> None:
        """Remove the file, if it has not become the target."""
        with contextlib.suppress(OSError):  # closing flushes, and a full disk fails once more
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary(target: Path) -> Iterator[Temporary]:
    """Open a temporary file for ``target``, whose folder is made; nothing remains of it unless it is committed.

    Raises:
        CacheError: the folder cannot be made or written, or is full.
    """
    with _cache_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        file = Temporary(target)
    try:
        remove_orphans(target.parent, "hardnet-")
        yield file
    finally:
        file.discard()


@contextlib.contextmanager
def turn(lock_file: Path, timeout: float) -> Iterator[None]:
    """Let one process at a time do what follows, where locks work; elsewhere a log line says that they do not.

    The lock only saves work: whoever goes on without it after ``timeout`` seconds does no harm.
    """
    import filelock

    lock = None
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(str(lock_file))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.info("waiting for another process that holds %s", lock_file)
            lock.acquire(timeout=timeout)
    except filelock.Timeout:
        logger.warning("%s is still held after %g seconds; going on without it", lock_file, timeout)
    except (OSError, RuntimeError) as error:  # NotImplementedError, where a file system has no locks, is among them
        logger.warning("no lock %s: %s; going on without it", lock_file, error)
    try:
        yield
    finally:
        if lock is not None and lock.is_locked:
            try:
                lock.release()
            except (OSError, RuntimeError) as error:
                logger.warning("the lock %s was not released: %s", lock_file, error)


@contextlib.contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"the cache folder {folder} cannot be written: {error}. Make room in it or make it writable, or point "
            "TORCH_HOME at another folder"
        ) from error
