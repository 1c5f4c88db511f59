"""Keep shrunk copies of large images, so that a photograph of a phone is decoded once and not in every epoch."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..images.read import load_image
from ..utils.errors import ImageError
from ..utils.files import write_atomically
from .data import Splits

if TYPE_CHECKING:
    from PIL import Image

CACHE = "cache"  # subfolder of a run with the shrunk images; it may be deleted at any time


def keep_shrunk(data: Splits, folder: Path, size: int) -> Splits:
    """Return a data set with its images shrunk to ``size`` pixels in the run's folder; 0 returns it unchanged."""
    if not size:
        return data
    read = partial(read_shrunk, folder / CACHE, size)
    return replace(data, train=replace(data.train, read=read), val=data.val and replace(data.val, read=read))


def read_shrunk(folder: Path, size: int, path: Path) -> Image.Image:
    """Return an upright RGB image whose shorter side is at most ``size`` pixels.

    A larger file is shrunk once, to an uncompressed file in the folder, and again when it has changed.
    """
    from PIL import Image

    with contextlib.suppress(OSError, ImageError):
        status = path.stat()
        key = os.fsencode(f"{path.absolute()}/{status.st_mtime_ns}/{status.st_size}/{size}")
        file = folder / f"{hashlib.blake2b(key, digest_size=16).hexdigest()}.ppm"
        if file.exists():
            return load_image(file)
    image = load_image(path, least_side=size)
    scale = size / min(image.size)
    if scale >= 1:
        return image
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    with contextlib.suppress(OSError):  # of a full disk: the image is shrunk again in the next epoch
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(file) as opened:
            image.save(opened, "PPM")
    return image
