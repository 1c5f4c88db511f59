"""A classifier whose right answers are known, and pictures for it; shared by the tests of classification."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hardnet import Classifier, ImageResult
from hardnet.images.preprocess import Preprocessing

IMAGES = Path(__file__).parent.parent / "images"
COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}
small_transform = Preprocessing(resize=36, crop=32)


class MainColour(nn.Module):
    """Logits (N, 3): how red, green and blue a picture is. The truth about it is known."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.batches: list[tuple[int, ...]] = []
        self.dtypes: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(tuple(x.shape))
        self.dtypes.append(x.dtype)
        return x.mean((2, 3)) * self.scale


class ConstantLogits(nn.Module):
    def __init__(self, classes: int, value: float = 0.0) -> None:
        super().__init__()
        self.classes, self.value = classes, value

    def forward(self, x: Tensor) -> Tensor:
        return x.new_full((len(x), self.classes), self.value)


def colour_classifier(device: str = "cpu") -> Classifier:
    return Classifier(MainColour(), device=device, labels=list(COLOURS), transform=small_transform)


def plain(colour: str = "red", size: tuple[int, int] = (40, 36)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[colour])


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """The content of an image file."""
    stored = io.BytesIO()
    image.save(stored, form, **options)
    return stored.getvalue()


def tops(results: list[ImageResult]) -> list[str]:
    return [result.top.label for result in results]
