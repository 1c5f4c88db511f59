"""Open regular files; write files atomically."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import OutputError
from .text import printable, reason

_LOCK, _GRACE = "lock", 60.0
"""The lock file of a temporary folder, and after how many seconds the folder has it."""


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
    return Path(os.path.expanduser(path))  # noqa: PTH111  (Path.expanduser raises there)


@contextlib.contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn an OSError into an :class:`OutputError` that names the file."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{printable(str(path))}: cannot be written: {reason(error)}") from None


@contextlib.contextmanager
def write_atomically(target: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file in the folder of ``target``; move it to ``target`` when the block ends without an error.

    The file is flushed to disk first, so that after a crash ``target`` is either the previous file or the complete new
    one. On an error the temporary file is removed, after a kill by a writer that starts a minute later or more.

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
    import filelock

    for orphan in parent.glob(f"{glob.escape(prefix)}*.part"):
        with contextlib.suppress(OSError, NotImplementedError):
            if time.time() - orphan.lstat().st_mtime > _GRACE:
                with filelock.FileLock(orphan / _LOCK, timeout=0):  # its process has ended
                    shutil.rmtree(orphan)
    place = Path(tempfile.mkdtemp(".part", prefix, parent))
    lock = filelock.FileLock(place / _LOCK, timeout=0)
    try:
        with contextlib.suppress(OSError, NotImplementedError):  # a file system without locks, which keeps orphans
            lock.acquire()
        folder = place / "files"
        folder.mkdir()
        yield folder
    finally:
        lock.release()
        shutil.rmtree(place, ignore_errors=True)


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
