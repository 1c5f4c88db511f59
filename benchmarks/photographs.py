"""Make calibration images and a folder of JPEG files from a few photographs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hardnet.images.preprocess import Preprocessing
from hardnet.images.read import load_image

PHOTOGRAPHS = sorted((Path(__file__).parents[1] / "images").glob("*.jpg"))


def calibration_images() -> list[Tensor]:
    """Return 64 random parts of the photographs as float tensors (8, 3, 224, 224), normalised as for ImageNet."""
    transform, parts = Preprocessing(resize=224), _random_parts(random.Random(0))  # noqa: S311
    return list(torch.split(torch.stack([transform(next(parts).resize((224, 224))) for _ in range(64)]), 8))


def write_jpegs(folder: Path, number: int, pixels: tuple[int, int] | None) -> list[Path]:
    """Write JPEG files, cut from the photographs at random places; return their paths. A third of them are upright.

    The same arguments give the same files. Without ``pixels``, the longer and the shorter side, they have about
    500 x 375, and the sides vary by a fifth.
    """
    chance = random.Random(0)  # noqa: S311
    parts = _random_parts(chance)
    paths = []
    for index in range(number):
        scale = chance.uniform(0.8, 1.2)
        long, short = pixels or (round(side * scale * chance.uniform(0.95, 1.05)) for side in (500, 375))
        paths.append(folder / f"{index:05}.jpg")
        next(parts).resize((short, long) if index % 3 == 0 else (long, short)).save(paths[-1], quality=90)
    return paths


def _random_parts(chance: random.Random) -> Iterator[Image.Image]:
    """Yield random parts of the photographs in turn, some mirrored, without end."""
    pictures = [load_image(path) for path in PHOTOGRAPHS]
    while True:
        for picture in pictures:
            share = chance.uniform(0.5, 1.0)
            width, height = (max(1, round(side * share)) for side in picture.size)
            left, top = chance.randint(0, picture.width - width), chance.randint(0, picture.height - height)
            part = picture.crop((left, top, left + width, top + height))
            yield part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if chance.random() < 0.5 else part
