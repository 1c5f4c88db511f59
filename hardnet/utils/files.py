"""Open regular files; write files atomically."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STALE_AFTER = 24 * 3600.0
"""Seconds after which an unfinished file is removed where its lock does not tell whether its writer lives."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, without blocking on a FIFO.

    Raises:
        OSError: the file cannot be opened, or is a folder, a FIFO, a socket or a device.
    """
    file = open(path, "rb", opener=_open_nonblocking)  # noqa: SIM115  the caller closes it
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return the path with ``~`` replaced by the home folder, unchanged where the home folder is unknown."""
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


@contextlib.contextmanager
def write_atomically(target: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file in the folder of ``target``; move it to ``target`` when the block ends without an error.

    The file is flushed to disk first, so that after a crash ``target`` is either the previous file or the complete new
    one. On an error the temporary file is removed. Files of writers that were killed are removed by the next writer.

    Raises:
        OSError: the file cannot be written; ``target`` is unchanged.
    """
    target = Path(target)
    with scratch_folder(target.parent, f".{target.name[:50]}.") as folder:
        part = folder / "part"
        with part.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Create a temporary folder in ``parent`` that is removed with its content; remove those of killed processes."""
    with contextlib.suppress(OSError):
        for path in [path for path in parent.iterdir() if path.name.startswith(prefix) and path.suffix == ".part"]:
            with contextlib.suppress(OSError):
                _remove_if_orphan(path)
    while True:
        folder = parent / f"{prefix}{uuid.uuid4().hex[:12]}.part"
        folder.mkdir(mode=0o700)
        descriptor, locked = None, None
        with contextlib.suppress(FileNotFoundError):
            descriptor, locked = _open_and_lock(folder)
        if locked is not False and folder.exists():
            break
        if descriptor is not None:  # another process took it for an orphan before it was locked
            os.close(descriptor)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _remove_if_orphan(folder: Path) -> None:
    descriptor, locked = _open_and_lock(folder)
    try:
        if locked or (locked is None and time.time() - folder.lstat().st_mtime > STALE_AFTER):
            shutil.rmtree(folder)
            logger.info("removed %s, which an interrupted process left behind", folder.name)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open_and_lock(folder: Path) -> tuple[int | None, bool | None]:
    """Return a descriptor of the folder, or None, and whether it is locked now, as ``_lock``."""
    if fcntl is None:
        return None, None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    return descriptor, _lock(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock without waiting: True if locked, False if another process holds the lock, None without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
