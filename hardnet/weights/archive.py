"""The ``.pth`` file inside a release archive, taken out with limits on everything the archive claims."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from pathlib import Path

from ..utils.errors import WeightsError
from ..utils.files import open_regular

MAX_BYTES = 512 * 1024 * 1024
"""Bytes: no checkpoint of the catalogue comes near, and memory can hold it."""

_MAX_ENTRIES = 100_000  # a stored torch file brings some hundreds of its own; a million would fill the memory
_ENTRY_SIGNATURE = b"PK\x01\x02"
_CHUNK = 1 << 20
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENCRYPTED = 0x1


class ArchiveError(WeightsError):
    """An archive is damaged or holds something else than one plain ``.pth`` file."""

    def __init__(self, message: str) -> None:
        super().__init__(message[:1000])  # names in it may be long


def unpack_archive(archive: bytes | Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes of the single ``.pth`` file that a ``.zip`` holds; nothing is written to disk.

    Args:
        archive: the archive's bytes, or its path.
        max_bytes: how large archive and file may be, in bytes.

    Raises:
        ArchiveError: the archive is damaged, or its content is not exactly one regular, unencrypted file at the
            top level whose name ends in ``.pth`` and which is at most ``max_bytes`` long.
    """
    content = archive if isinstance(archive, bytes) else _read(archive, max_bytes)
    if len(content) > max_bytes:
        raise ArchiveError(f"the archive is larger than {max_bytes} bytes")
    # Counted first, because zipfile builds an object for every entry that the directory lists.
    if content.count(_ENTRY_SIGNATURE) > _MAX_ENTRIES:
        raise ArchiveError("the archive lists too many members, expected one .pth file")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as opened:
            return _read_member(opened, _single_member(opened, max_bytes), max_bytes)
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        NotImplementedError,
        ValueError,
        OverflowError,
        OSError,
    ) as error:
        raise ArchiveError(f"the archive is damaged: {error}") from error


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise ArchiveError(f"the archive cannot be read: {error}") from error


def _single_member(opened: zipfile.ZipFile, max_bytes: int) -> zipfile.ZipInfo:
    members = opened.infolist()
    if len(members) != 1:
        names = ", ".join(repr(member.filename) for member in members[:3])
        raise ArchiveError(f"the archive holds {len(members)} members ({names} ...), expected one .pth file")
    member = members[0]
    # The original name too: zipfile cuts at a NUL and turns the system's separators around.
    for name in (member.filename, member.orig_filename):
        if not name.endswith(".pth") or any(char in name for char in "/\\:\0"):
            raise ArchiveError(f"the archive holds {member.orig_filename!r}, expected one plain name ending in .pth")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise ArchiveError(f"{member.filename!r} in the archive is not a regular file")
    if member.flag_bits & _ENCRYPTED:
        raise ArchiveError(f"{member.filename!r} in the archive is encrypted")
    if member.compress_type not in _METHODS:
        raise ArchiveError(f"{member.filename!r} in the archive is packed by an unusual method, expected deflate")
    if member.file_size > max_bytes:
        raise ArchiveError(f"{member.filename!r} unpacks to {member.file_size} bytes, the limit is {max_bytes}")
    return member


def _read_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, max_bytes: int) -> bytes:
    content = bytearray()
    with opened.open(member) as file:
        while chunk := file.read(_CHUNK):
            content += chunk
            if len(content) > max_bytes:
                raise ArchiveError(f"{member.filename!r} unpacks to more than {max_bytes} bytes")
    if len(content) != member.file_size:
        raise ArchiveError(f"{member.filename!r} ends after {len(content)} of {member.file_size} bytes")
    return bytes(content)
