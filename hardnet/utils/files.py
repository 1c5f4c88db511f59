"""Files of strangers and of the dead: opened only where they are files, written whole or not at all.

What is being written lies beside its place, under a name of its own, and is locked as long as its process lives. So the
next process can tell it from what a killed one left behind.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

logger = logging.getLogger(__name__)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STALE_AFTER = 24 * 3600.0
"""Seconds since its last change after which a temporary file belongs to no living process.

That is for files of other hosts, and for file systems without locks.
"""

_PART = re.compile(r"([0-9a-f]{8})-[0-9a-f]{12}\.part")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading. Anything else, though it were put there just now, is refused without waiting.

    Raises:
        OSError: it cannot be opened, or it is a folder, a FIFO, a socket or a device.
    """
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115  the caller closes it
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home folder in place of ``~``; as it is where nobody knows that home."""
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def create_part(folder: Path, prefix: str) -> tuple[Path, IO[bytes]]:
    """Make a locked temporary file, empty and open for reading and writing; the name begins with ``prefix``."""
    while True:
        path = folder / _part_name(prefix)
        # Not tempfile: its files are private to the user, and what they become may be shared.
        file = path.open("x+b")
        if _lock(file.fileno()) is not False and path.exists():
            return path, file
        file.close()  # another process took it for an orphan before it was locked


@contextlib.contextmanager
def scratch_folder(folder: Path, prefix: str) -> Iterator[Path]:
    """Make a locked temporary folder, which goes with everything in it; orphans of this prefix go first."""
    remove_orphans(folder, prefix)
    while True:
        path = folder / _part_name(prefix)
        path.mkdir(mode=0o700)
        descriptor = None if fcntl is None else os.open(path, os.O_RDONLY)
        if descriptor is None or (_lock(descriptor) is not False and path.exists()):
            break
        os.close(descriptor)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def hidden_prefix(target: Path) -> str:
    """Return how the names of temporary files for ``target`` begin; cut short, so that they are not too long."""
    return f".{target.name[:50]}."


def remove_orphans(folder: Path, prefix: str) -> None:
    """Remove what killed processes left behind under names that begin with ``prefix``, and nothing of a living one."""
    with contextlib.suppress(OSError):
        for path in [path for path in folder.iterdir() if path.name.startswith(prefix)]:
            found = _PART.search(path.name)
            if found is not None:
                with contextlib.suppress(OSError):
                    _remove_if_orphan(path, of_this_host=found[1] == _host())


def _remove_if_orphan(path: Path, *, of_this_host: bool) -> None:
    status = path.lstat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return  # a link or a FIFO, which somebody planted
    with _tried_lock(path) as locked:  # held until it is gone, so that it cannot come to life meanwhile
        stale = time.time() - status.st_mtime > STALE_AFTER
        if locked is False or not (stale or (locked and of_this_host)):
            return
        if stat.S_ISDIR(status.st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    logger.info("removed %s, left behind by a process that was cut off", path.name)


@contextlib.contextmanager
def _tried_lock(path: Path) -> Iterator[bool | None]:
    """Lock a file or folder if that is possible at once; give whether it was, None where there are no locks."""
    try:
        descriptor = None if fcntl is None else os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # another user's
        descriptor = None
    try:
        yield None if descriptor is None else _lock(descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock an open file until it is closed, without waiting; return whether that went, None where nothing locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _part_name(prefix: str) -> str:
    return f"{prefix}{_host()}-{uuid.uuid4().hex[:12]}.part"


@functools.cache
def _host() -> str:
    """Tell this host's files from others': whether a lock of another host would show depends on the file system."""
    return hashlib.sha256(socket.gethostname().encode("utf-8", "replace")).hexdigest()[:8]


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a FIFO would wait for a writer
