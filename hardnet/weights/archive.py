"""Extract the ``.pth`` file from a release archive in memory, with a size limit."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

from ..utils.errors import WeightsError

MAX_BYTES = 512 * 1024 * 1024
"""Default size limit of a checkpoint in bytes."""


class ArchiveError(WeightsError):
    """An archive is damaged, or its content is not a single ``.pth`` file."""


def unpack_archive(archive: bytes, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of the single ``.pth`` file in a ``.zip``; nothing is written to disk.

    Raises:
        ArchiveError: the archive is damaged, does not hold exactly one ``.pth`` file, or the file is larger than
            ``max_bytes``.
    """
    content = bytearray()
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            members = opened.infolist()
            if len(members) != 1 or not members[0].filename.endswith(".pth"):
                names = ", ".join(repr(member.filename[:100]) for member in members[:3])
                raise ArchiveError(f"the archive has {len(members)} members ({names}), expected one .pth file")
            if members[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArchiveError("the archive uses an unknown compression method, expected deflate")
            with opened.open(members[0]) as file:
                while chunk := file.read(1 << 20):  # in chunks: the declared size may be wrong
                    content += chunk
                    if len(content) > max_bytes:
                        raise ArchiveError(f"the file in the archive is larger than {max_bytes} bytes")
    except ArchiveError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OSError) as error:
        raise ArchiveError(f"the archive is damaged: {str(error)[:200]}") from error
    if len(content) != members[0].file_size:
        raise ArchiveError(f"the file in the archive ends after {len(content)} of {members[0].file_size} bytes")
    return bytes(content)
