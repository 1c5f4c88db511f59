"""Small data sets and short runs for the tests of training: a class is a place where the picture is bright."""

import gzip
import random
import struct
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hardnet.cli import build_parser
from hardnet.training.options import TrainOptions
from hardnet.utils.distributed import Ranks

ONE = Ranks(0, 1, torch.device("cpu"))
TINY = [
    "--epochs", "1", "--batch-size", "4", "--size", "32", "--crop", "pad", "--crop-ratio", "1", "--workers", "0",
    "--device", "cpu",
]  # fmt: skip


def picture(label: int, seed: int, size: int = 32) -> Image.Image:
    """A noisy picture with one bright horizontal band, whose place tells the class."""
    noise = random.Random(f"{label}/{seed}")  # noqa: S311 - no secret
    rows = [200 if row * 4 // size == label % 4 else 20 for row in range(size)]
    return Image.frombytes("L", (size, size), bytes(level + noise.randrange(50) for level in rows for _ in range(size)))


def make_folder(root: Path, *, classes: int = 3, images: int = 8, size: int = 32, split: str = "train") -> Path:
    """An ImageFolder tree: root/split/class_0/0.png, ...; returns the folder of the split."""
    for label in range(classes):
        folder = root / split / f"class_{label}"
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(images):
            picture(label, index + 1000 * (split == "val"), size).convert("RGB").save(folder / f"{index}.png")
    return root / split


def idx_bytes(shape: tuple[int, ...], values: bytes) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + values


def make_fashion_mnist(folder: Path, *, train: int = 40, test: int = 13, zipped: bool = True) -> Path:
    """The four IDX files, with small counts; image i of a split has class i % 10."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", train), ("t10k", test)):
        pixels = b"".join(picture(index % 10, index, 28).tobytes() for index in range(count))
        labels = bytes(index % 10 for index in range(count))
        for name, content in (
            (f"{stem}-images-idx3-ubyte", idx_bytes((count, 28, 28), pixels)),
            (f"{stem}-labels-idx1-ubyte", idx_bytes((count,), labels)),
        ):
            path = folder / (name + ".gz" if zipped else name)
            path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


def options(data: Path, output: Path, **changes: Any) -> TrainOptions:
    """A run of a few steps: 24 images of 32 pixels in batches of 4."""
    defaults: dict[str, Any] = {
        "epochs": 2, "batch_size": 4, "size": 32, "crop": "pad", "crop_ratio": 1.0, "workers": 0, "lr": 0.05,
        "lr_batch": 4, "device": "cpu", "seed": 5, "val_fraction": 0.0,
    }  # fmt: skip
    return TrainOptions(data=str(data), output=str(output), **(defaults | changes))


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def assert_same(one: Any, other: Any, where: str = "checkpoint") -> None:
    """Equal to the last bit, all the way down."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert one == other, where


def run_verb(*arguments: object) -> int:
    """Run a command; exceptions come through."""
    parsed = build_parser().parse_args([str(argument) for argument in arguments])
    return int(parsed.run(parsed))
