"""Read Fashion-MNIST from its IDX files, plain or gzipped."""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.errors import DataError
from ..utils.text import reason
from ..weights.catalog import CATALOG

if TYPE_CHECKING:
    from PIL import Image

RECORD = CATALOG["hardnet39ds", "FASHION_MNIST"]
_STEMS = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTES = b"\0\0\x08"  # the start of an IDX file of this type; the number of dimensions follows


def find_idx(folder: Path, stem: str) -> Path | None:
    """Return the file of this name in a folder, or where torchvision puts it; None if there is none."""
    places = (folder, folder / "FashionMNIST" / "raw", folder / "raw")
    paths = (place / f"{stem}-ubyte{suffix}" for place in places for suffix in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def read_garments(folder: Path, split: str) -> tuple[list[Image.Image], list[int]]:
    """Return the grey pictures of garments of a split, "train" or "test", and their classes."""
    from PIL import Image

    contents = []
    for kind in ("images-idx3", "labels-idx1"):
        stem = f"{_STEMS[split]}-{kind}"
        path = find_idx(folder, stem)
        if path is None:
            raise DataError(
                f"{folder}: holds no {stem}-ubyte.gz (nor {stem}-ubyte, here or in FashionMNIST/raw); install Debian's "
                "package dataset-fashion-mnist, or name the folder with the four files"
            )
        contents.append(read_idx(path))
    (shape, pixels), (label_shape, labels) = contents
    last = max(labels, default=0)
    if len(shape) != 3 or 0 in shape or label_shape != shape[:1] or last >= len(RECORD.categories):
        raise DataError(
            f"{folder}: the files of {split} do not belong together: images {shape}, labels {label_shape}, the last "
            f"class {last}"
        )
    size = shape[1] * shape[2]
    starts = range(0, len(pixels), size)
    return [Image.frombytes("L", shape[:0:-1], pixels[start : start + size]) for start in starts], list(labels)


def read_idx(path: Path) -> tuple[tuple[int, ...], bytes]:
    """Return the dimensions of an IDX file (http://yann.lecun.com/exdb/mnist), and its values in row-major order."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        shape = struct.unpack_from(f">{data[3]}I", data, 4)
    except (OSError, EOFError, IndexError, zlib.error, struct.error) as error:  # gzip.BadGzipFile is an OSError
        raise DataError(f"{path}: cannot be read as an IDX file: {reason(error)}") from None
    values = data[4 + 4 * len(shape) :]
    if data[:3] != _UNSIGNED_BYTES or len(values) != prod(shape):
        raise DataError(f"{path}: is not a complete IDX file of unsigned bytes")
    return shape, values
