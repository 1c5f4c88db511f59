"""Keep shrunk copies of large images, so that a photograph of a phone is decoded once and not in every epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..images.read import load_image
from ..utils.errors import ImageError
from ..utils.files import write_atomically
from .data import ImageSource, Splits

if TYPE_CHECKING:
    from PIL import Image

CACHE = "cache"
"""Subfolder of a run with the shrunk images; it may be deleted at any time."""


class ShrunkSource(ImageSource):
    """Images whose shorter side is at most ``size`` pixels: larger files are shrunk to uncompressed files in a folder.

    This is done once; a file that has changed since is shrunk again.
    """

    def __init__(self, source: ImageSource, folder: Path, size: int) -> None:
        super().__init__(source.classes, source.labels, source.names, source.files)
        self._folder = folder
        self._size = size

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Return an upright RGB image, shrunk, and its class."""
        from PIL import Image

        path, label = self.files[index], self.labels[index]
        if not isinstance(path, Path):
            return super().load(index)
        with contextlib.suppress(OSError, ImageError):
            status = path.stat()
            key = os.fsencode(f"{path.absolute()}/{status.st_mtime_ns}/{status.st_size}/{self._size}")
            file = self._folder / f"{hashlib.blake2b(key, digest_size=16).hexdigest()}.ppm"
            if file.exists():
                return load_image(file), label
        image = load_image(path, least_side=self._size)
        scale = self._size / min(image.size)
        if scale >= 1:
            return image, label
        sides = (round(image.width * scale), round(image.height * scale))
        image = image.resize(sides, Image.Resampling.BICUBIC)
        with contextlib.suppress(OSError):  # of a full disk: the image is shrunk again in the next epoch
            self._folder.mkdir(parents=True, exist_ok=True)
            with write_atomically(file) as opened:
                image.save(opened, "PPM")
        return image, label


def keep_shrunk(data: Splits, folder: Path, size: int) -> Splits:
    """Return a data set with its images shrunk to ``size`` pixels in the run's folder; 0 returns it unchanged."""
    if not size:
        return data
    val = data.val and ShrunkSource(data.val, folder / CACHE, size)
    return dataclasses.replace(data, train=ShrunkSource(data.train, folder / CACHE, size), val=val)
