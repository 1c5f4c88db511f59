"""The evaluation transform: torchvision's own pipeline to the last bit, and no memory bombs."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from hardnet.images.preprocess import MAX_ASPECT_RATIO, Preprocessing
from hardnet.images.read import load_image
from hardnet.utils.errors import ImageError

ROOT = Path(__file__).parent.parent
PHOTOGRAPHS = sorted((ROOT / "images").glob("*.jpg"))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def torchvision_pipeline(resize: int = 256, crop: int = 224, mean=MEAN, std=STD) -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.Resize(resize),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.name)
def test_equals_torchvision_to_the_last_bit_on_photographs(path: Path) -> None:
    for image in (load_image(path), Image.open(path).convert("RGB")):
        ours = Preprocessing()(image)
        assert ours.shape == (3, 224, 224)
        assert ours.dtype == torch.float32
        assert torch.equal(ours, torchvision_pipeline()(image))


@pytest.mark.parametrize(
    "size",
    [(500, 333), (333, 500), (256, 256), (224, 224), (225, 223), (10, 13), (1, 1), (1000, 257), (32, 1), (3, 96)],
)
def test_equals_torchvision_to_the_last_bit_for_every_shape(size: tuple[int, int]) -> None:
    image = noise(*size)
    assert torch.equal(Preprocessing()(image), torchvision_pipeline()(image))


def test_other_sizes_and_statistics_are_followed() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    image = noise(300, 200)
    ours = Preprocessing(resize=100, crop=64, mean=mean, std=std)(image)
    assert ours.shape == (3, 64, 64)
    assert torch.equal(ours, torchvision_pipeline(100, 64, mean, std)(image))


@pytest.mark.parametrize("size", [(101, 3), (10, 331), (9000, 270), (600, 20_001)])
def test_of_a_long_picture_the_middle_is_resized(size: tuple[int, int]) -> None:
    longest = MAX_ASPECT_RATIO * min(size)
    image = noise(*size)
    middle = transforms.CenterCrop((min(longest, image.height), min(longest, image.width)))(image)
    assert torch.equal(Preprocessing()(image), torchvision_pipeline()(middle))


@pytest.mark.parametrize("size", [(1, 10_000), (50_000, 300)])
def test_a_long_picture_never_becomes_a_gigantic_one(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = Image.Image.resize

    def resize(self: Image.Image, size: tuple[int, int], *args: object, **kwargs: object) -> Image.Image:
        sizes.append(size)
        return original(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", resize)
    tensor = Preprocessing()(Image.new("RGB", size, (10, 200, 30)))
    assert tensor.shape == (3, 224, 224)
    assert sizes
    assert all(width * height <= 256 * 256 * MAX_ASPECT_RATIO for width, height in sizes)
    expected = (torch.tensor([10, 200, 30]) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert torch.allclose(tensor, expected.view(3, 1, 1).expand(3, 224, 224), atol=1e-6)


def test_pickles_and_compares() -> None:
    transform = Preprocessing(resize=232)
    again = pickle.loads(pickle.dumps(transform))  # noqa: S301 (made on this line)
    assert again == transform != Preprocessing()
    image = noise(300, 280)
    assert torch.equal(again(image), transform(image))


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 <= crop <= resize <= 16384 pixels is required, got \(224, 100\)"):
        Preprocessing(resize=100)
    with pytest.raises(ValueError, match="crop"):
        Preprocessing(crop=0)
    with pytest.raises(ValueError, match="std must be positive"):
        Preprocessing(std=(0.2, 0.0, 0.2))


def test_what_is_no_image_is_refused() -> None:
    for wrong in ("images/cat.jpg", torch.zeros(3, 8, 8), np.zeros((8, 8, 3), np.uint8), None):
        with pytest.raises(TypeError, match=f"takes a Pillow image, got {type(wrong).__name__}"):
            Preprocessing()(wrong)
    with pytest.raises(ImageError, match="no pixels: its size is 0 x 5"):
        Preprocessing()(Image.new("RGB", (0, 5)))
