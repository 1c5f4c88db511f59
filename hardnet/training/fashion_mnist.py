"""Read Fashion-MNIST from its IDX files, plain or gzipped."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import DataError
from ..utils.text import reason
from ..weights.catalog import CATALOG

if TYPE_CHECKING:
    from PIL import Image

RECORD = CATALOG["hardnet39ds", "FASHION_MNIST"]
_STEMS = {"train": "train", "test": "t10k"}


def find_idx(folder: Path, stem: str) -> Path | None:
    """Return the file of this name in a folder, or where torchvision puts it; None if there is none."""
    places = (folder, folder / "FashionMNIST" / "raw", folder / "raw")
    paths = (place / f"{stem}-ubyte{suffix}" for place in places for suffix in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def read_garments(folder: Path, split: str) -> tuple[list[Image.Image], list[int]]:
    """Return the grey pictures of garments of a split, "train" or "test", and their classes."""
    from PIL import Image

    arrays = []
    for kind in ("images-idx3", "labels-idx1"):
        stem = f"{_STEMS[split]}-{kind}"
        path = find_idx(folder, stem)
        if path is None:
            advice = "install Debian's package dataset-fashion-mnist, or name the folder with the four files"
            raise DataError(f"{folder}: holds no {stem}-ubyte or {stem}-ubyte.gz; {advice}")
        arrays.append(read_idx(path))
    images, labels = arrays
    last = max(labels.tolist(), default=len(RECORD.categories))
    if images.ndim != 3 or labels.shape != images.shape[:1] or last >= len(RECORD.categories):
        shapes = f"images {images.shape}, labels {labels.shape}, the last class {last}"
        raise DataError(f"{folder}: the files of {split} do not belong together: {shapes}")
    return [Image.fromarray(image) for image in images], labels.tolist()


def read_idx(path: Path) -> Any:
    """Return the array of an IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist)."""
    import numpy as np

    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        shape = struct.unpack_from(f">{data[3]}I", data, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error, struct.error) as error:
        raise DataError(f"{path}: cannot be read as an IDX file: {reason(error)}") from None
