"""Make calibration images and a folder of JPEG files from a few photographs."""

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


def write_jpegs(folder: Path, number: int, pixels: tuple[int, int]) -> list[Path]:
    """Write JPEG files of a width and a height, every third upright, and return their paths: always the same files."""
    paths = [folder / f"{index:05}.jpg" for index in range(number)]
    for index, (path, part) in enumerate(zip(paths, _random_parts(random.Random(0)))):  # noqa: B905, S311  (no end)
        part.resize(pixels[::-1] if index % 3 == 0 else pixels).save(path, quality=90)
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
