"""Make calibration images and a folder of JPEG files from a few photographs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hardnet.images.preprocess import Preprocessing
from hardnet.images.read import list_images, load_image

CHECKOUT = Path(__file__).parents[1] / "images"


def find_photographs(folder: Path | None) -> list[Path]:
    """Return the photographs of a folder; None is ``images/`` of the checkout, without its subfolders.

    Raises:
        ValueError: there are none.
        ImageError: there is no such folder.
    """
    paths = sorted(CHECKOUT.glob("*.jpg")) if folder is None else list(list_images(folder))
    if not paths:
        raise ValueError("there are no photographs: name a folder of photographs with --photographs")
    return paths


def calibration_images(folder: Path | None) -> list[Tensor]:
    """Return 64 random parts of the photographs as float tensors (8, 3, 224, 224), normalised as for ImageNet."""
    from torchvision.transforms import functional  # a second to import

    prepared = Preprocessing()
    parts = _random_parts(find_photographs(folder), random.Random(0))  # noqa: S311
    tensors = []
    for _ in range(64):
        tensor = functional.to_tensor(next(parts).resize((224, 224)))
        tensors.append(functional.normalize(tensor, list(prepared.mean), list(prepared.std)))
    return list(torch.split(torch.stack(tensors), 8))


def write_jpegs(folder: Path, number: int, photographs: list[Path]) -> list[Path]:
    """Write JPEG files of about 500 x 375 pixels, cut from the photographs at random places; return their paths.

    The same arguments give the same files. A third of them are upright, and the sides vary by a fifth.
    """
    chance = random.Random(0)  # noqa: S311
    parts = _random_parts(photographs, chance)
    paths = []
    for index in range(number):
        scale = chance.uniform(0.8, 1.2)
        long, short = (round(side * scale * chance.uniform(0.95, 1.05)) for side in (500, 375))
        paths.append(folder / f"{index:05}.jpg")
        next(parts).resize((short, long) if index % 3 == 0 else (long, short)).save(paths[-1], quality=90)
    return paths


def _random_parts(photographs: list[Path], chance: random.Random) -> Iterator[Image.Image]:
    """Yield random parts of the photographs in turn, some mirrored, without end."""
    pictures = [load_image(path) for path in photographs]
    while True:
        for picture in pictures:
            share = chance.uniform(0.5, 1.0)
            width, height = (max(1, round(side * share)) for side in picture.size)
            left, top = chance.randint(0, picture.width - width), chance.randint(0, picture.height - height)
            part = picture.crop((left, top, left + width, top + height))
            yield part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if chance.random() < 0.5 else part
