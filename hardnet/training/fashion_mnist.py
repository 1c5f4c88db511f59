"""Fashion-MNIST from its IDX files, as Pillow images with their class."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.errors import DataError
from ..utils.text import reason
from ..weights.catalog import CATALOG

if TYPE_CHECKING:
    from PIL import Image

_UNSIGNED_BYTES = b"\0\0\x08"  # the start of an IDX file of this type; the number of dimensions follows
RECORD = CATALOG["hardnet39ds", "FASHION_MNIST"]


class FashionMNISTSource:
    """The 28 x 28 pixel photographs of garments, from IDX files, gzipped or not.

    Args:
        images: the file of the pixels.
        labels: the file of the classes.

    Raises:
        DataError: a file is damaged, or the two do not fit together.
    """

    def __init__(self, images: Path, labels: Path) -> None:
        self.classes: Sequence[str] = tuple(RECORD.categories)
        shape, self._pixels = read_idx(images)
        label_shape, self.labels = read_idx(labels)
        if len(shape) != 3 or len(label_shape) != 1 or shape[0] != label_shape[0]:
            raise DataError(f"{images} holds {shape} values, {labels} {label_shape}: expected (N, H, W) and (N,)")
        if max(self.labels, default=0) >= len(self.classes):
            raise DataError(f"{labels}: class {max(self.labels)} is none of the {len(self.classes)} of Fashion-MNIST")
        self._count, self._height, self._width = shape

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """Return the number of an image."""
        return f"image {index}"

    def path(self, index: int) -> None:
        """Return None: an image is a part of a file."""

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Return an RGB image, its three channels alike, and its class."""
        from PIL import Image

        length = self._height * self._width
        pixels = self._pixels[index * length : (index + 1) * length]
        return Image.frombytes("L", (self._width, self._height), pixels).convert("RGB"), self.labels[index]


def read_idx(path: Path) -> tuple[tuple[int, ...], bytes]:
    """Read an IDX file of unsigned bytes, plain or gzipped: its dimensions and its values in row-major order.

    Format: http://yann.lecun.com/exdb/mnist.

    Raises:
        DataError: the file cannot be read, is no IDX file of unsigned bytes, or its length does not match its header.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        if data[:3] != _UNSIGNED_BYTES:
            raise DataError(f"{path}: is not an IDX file of unsigned bytes (it begins with {data[:4]!r})")
        shape = struct.unpack_from(f">{data[3]}I", data, 4)
    except (OSError, EOFError, IndexError, zlib.error, struct.error) as error:  # gzip.BadGzipFile is an OSError
        raise DataError(f"{path}: cannot be read as an IDX file: {reason(error)}") from None
    values = data[4 + 4 * len(shape) :]
    if len(values) != prod(shape):
        raise DataError(f"{path}: the header states {prod(shape)} values ({shape}), the file has {len(values)}")
    return shape, values
