"""The IDX files of MNIST and Fashion-MNIST, plain or gzipped: http://yann.lecun.com/exdb/mnist describes the format."""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

from .errors import DataError

_UINT8 = 0x08


def read_idx(path: Path) -> tuple[tuple[int, ...], bytes]:
    """Read a file of unsigned bytes: its dimensions and its values, the last dimension running fastest.

    Raises:
        DataError: the file cannot be read, is no IDX file of unsigned bytes, or is longer or shorter than it says.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise DataError(f"{path}: cannot be read: {error}") from None
    if len(data) < 4 or data[:2] != b"\0\0":
        raise DataError(f"{path}: is not an IDX file (it does not begin with two zero bytes)")
    kind, dimensions = data[2], data[3]
    if kind != _UINT8 or dimensions < 1:
        raise DataError(f"{path}: an IDX file of unsigned bytes (type 0x08) is wanted, this one has type {kind:#04x}")
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise DataError(f"{path}: the IDX header is cut off")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) - start != prod(shape):
        raise DataError(f"{path}: {prod(shape)} values are announced ({shape}), {len(data) - start} are there")
    return shape, data[start:]
