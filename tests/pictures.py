"""A classifier whose right answers are known, and pictures for it; shared by the tests of classification."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from hardnet import Classifier, HarDNet, ImageResult
from hardnet.images.preprocess import Preprocessing
from hardnet.models.config import CONFIGS

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
        self.inference_modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(tuple(x.shape))
        self.dtypes.append(x.dtype)
        self.inference_modes.append(torch.is_inference_mode_enabled())
        return x.mean((2, 3)) * self.scale


class ConstantLogits(nn.Module):
    def __init__(self, classes: int, value: float = 0.0) -> None:
        super().__init__()
        self.classes, self.value = classes, value

    def forward(self, x: Tensor) -> Tensor:
        return x.new_full((len(x), self.classes), self.value)


def colour_classifier(device: str = "cpu") -> Classifier:
    return Classifier(MainColour(), device=device, labels=list(COLOURS), transform=small_transform)


def small_network(golden_fill: Callable[[nn.Module], nn.Module], device: str) -> Classifier:
    """A real network whose answers differ from picture to picture, on small pictures for the sake of time."""
    transform = Preprocessing(resize=72, crop=64)
    return Classifier(golden_fill(HarDNet(CONFIGS["hardnet39ds"], num_classes=10)), device=device, transform=transform)


def plain(colour: str = "red", size: tuple[int, int] = (40, 36)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[colour])


def tops(results: list[ImageResult]) -> list[str]:
    return [result.top.label for result in results]


def fill_folder(path: Path) -> Path:
    """Twenty pictures, red, green, blue, red, ...; number 7 is broken."""
    for number in range(20):
        plain(list(COLOURS)[number % 3]).save(path / f"{number:02}.png")
    whole = (path / "07.png").read_bytes()
    (path / "07.png").write_bytes(whole[: len(whole) // 2])
    return path
