"""Open regular files; write files atomically."""

import contextlib
import errno
import glob
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import OutputError
from .text import printable, reason


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, without blocking on a FIFO.

    Raises:
        OSError: the file cannot be opened, or is a folder, a FIFO, a socket or a device.
    """
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | nonblocking))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return the path with ``~`` replaced by the home folder, unchanged if the home folder is unknown."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (Path.expanduser raises then)


@contextlib.contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn an OSError into an :class:`OutputError` that names the file."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{printable(str(path))}: cannot be written: {reason(error)}") from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file for this process, by a hidden file beside it; remove what killed atomic writers of it have left.

    Raises:
        OutputError: another process holds it.
    """
    import filelock

    path.parent.stat()  # filelock would create the folder
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise OutputError(f"{printable(str(path))}: another process is writing it") from None
    except NotImplementedError:  # a file system without locks
        pass
    try:
        for orphan in path.parent.glob(f".{glob.escape(path.name[:50])}.{'[0-9a-f]' * 32}.part"):
            orphan.unlink(missing_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes it when it is released
            os.unlink(lock.lock_file)  # noqa: PTH108
        lock.release()


@contextlib.contextmanager
def write_atomically(target: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file in the folder of ``target``; move it to ``target`` when the block ends without an error.

    The file is flushed to disk first, so that after a crash ``target`` is either the previous file or the complete new
    one. On an error the temporary file is removed.

    Raises:
        OSError: the file cannot be written; ``target`` is unchanged.
    """
    target = Path(target)
    part = target.with_name(f".{target.name[:50]}.{uuid.uuid4().hex}.part")
    try:
        with part.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Create a temporary folder in ``parent``, with the permissions of a new folder; remove it with its content."""
    with tempfile.TemporaryDirectory(".part", prefix, parent, ignore_cleanup_errors=True) as place:
        folder = Path(place, "files")
        folder.mkdir()
        yield folder
