"""Real pictures for the benchmark, made from a few photographs: calibration images, and a folder of JPEG files."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hardnet.images.preprocess import Preprocessing
from hardnet.images.read import list_images, load_image

if TYPE_CHECKING:
    from PIL import Image

_NUMBER, _LEAST = 64, 8
"""How many of 224 x 224 pixels; of larger ones fewer, so that it takes about as long."""
_BATCH = 8
_CHECKOUT = Path(__file__).parents[2] / "images"
_JPEG_SIZE, _QUALITY = (500, 375), 90


def find_photographs(folder: Path | None) -> list[Path]:
    """Return the photographs of a folder; None means ``images/`` of the checkout, without its subfolders.

    Raises:
        ValueError: there are none.
        ImageError: there is no such folder.
    """
    paths = sorted(_CHECKOUT.glob("*.jpg")) if folder is None else list(list_images(folder))
    if not paths:
        raise ValueError("there are no photographs to work on: name a folder of some with --photographs")
    return paths


def calibration_images(folder: Path | None, height: int, width: int, batch: int) -> list[Tensor]:
    """Return random parts of the photographs as float tensors (N, 3, height, width), prepared as for ImageNet.

    Args:
        folder: see :func:`find_photographs`.
        height: in pixels.
        width: in pixels.
        batch: N is this where it is less than 8.
    """
    from torchvision.transforms import functional  # type: ignore[import-untyped]

    prepared = Preprocessing()
    number = max(_LEAST, _NUMBER * 224 * 224 // (height * width))
    parts = _random_parts(find_photographs(folder), random.Random(0))  # noqa: S311  (pictures)
    tensors = []
    for _ in range(number):
        tensor = functional.to_tensor(next(parts).resize((width, height)))
        tensors.append(functional.normalize(tensor, list(prepared.mean), list(prepared.std)))
    return list(torch.split(torch.stack(tensors), min(batch, _BATCH)))


def write_jpegs(folder: Path, number: int, photographs: list[Path]) -> list[Path]:
    """Write JPEG files of about 500 x 375 pixels, cut from the photographs at random places; return their paths.

    The same arguments give the same files. A third of them stand upright, and the sides vary by a fifth.
    """
    chance = random.Random(0)  # noqa: S311  (pictures)
    parts = _random_parts(photographs, chance)
    paths = []
    for index in range(number):
        scale = chance.uniform(0.8, 1.2)
        long, short = (round(side * scale * chance.uniform(0.95, 1.05)) for side in _JPEG_SIZE)
        size = (short, long) if index % 3 == 0 else (long, short)
        path = folder / f"{index:05}.jpg"
        next(parts).resize(size).save(path, quality=_QUALITY)
        paths.append(path)
    return paths


def _random_parts(photographs: list[Path], chance: random.Random) -> Iterator[Image.Image]:
    """Yield random parts of the photographs in turn, some mirrored, for ever."""
    from PIL import Image

    pictures = [load_image(path) for path in photographs]
    while True:
        for picture in pictures:
            share = chance.uniform(0.5, 1.0)
            width, height = (max(1, round(side * share)) for side in picture.size)
            left, top = chance.randint(0, picture.width - width), chance.randint(0, picture.height - height)
            part = picture.crop((left, top, left + width, top + height))
            yield part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if chance.random() < 0.5 else part
