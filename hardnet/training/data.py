"""Data sets for training and evaluation: open folders of images or Fashion-MNIST, and split them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from ..images.preprocess import Preprocessing
from ..utils.errors import DataError
from ..utils.text import reason
from .fashion_mnist import RECORD, FashionMNISTSource
from .options import TrainOptions
from .seeds import permutation

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

_IDX_NAMES = {"train": "train", "test": "t10k"}
_IMAGENET = Preprocessing()


class ImageSource(Protocol):
    """A numbered collection of labelled images."""

    classes: Sequence[str]
    """Their names, in the order of their numbers."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Return an image and the number of its class.

        Raises:
            ImageError: it cannot be read; the message names the file.
        """


@dataclass(frozen=True)
class Splits:
    """A data set: what to train on, and what to validate on if there is anything."""

    train: ImageSource
    val: ImageSource | None
    mean: tuple[float, ...] = _IMAGENET.mean
    """Of each colour, in [0, 1]."""
    std: tuple[float, ...] = _IMAGENET.std
    """Likewise."""


class FolderSource:
    """The images of ``root/CLASS/...``; classes are numbered in the order of their names."""

    def __init__(self, root: Path) -> None:
        from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]

        try:
            folder = ImageFolder(str(root))
        except OSError as error:  # torchvision names the classes without images
            raise DataError(f"{root}: {reason(error)}; expected one subfolder of images per class") from None
        self.classes: Sequence[str] = tuple(folder.classes)
        folded: dict[str, str] = {}
        for name in folder.classes:
            other = folded.setdefault(name.casefold(), name)
            if other != name:
                raise DataError(f"{root}: the classes {other} and {name} differ in case only: rename or merge them")
        self._samples: list[tuple[str, int]] = folder.samples
        self.labels: list[int] = folder.targets
        self._root = root

    def __len__(self) -> int:
        return len(self._samples)

    def name(self, index: int) -> str:
        """Return an image's path within the folder."""
        return Path(self._samples[index][0]).relative_to(self._root).as_posix()

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Return an upright RGB image and its class."""
        from ..images.read import load_image

        path, label = self._samples[index]
        return load_image(path), label


class SubsetSource:
    """Some images of another source."""

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self.classes = source.classes
        self._source = source
        self._indices = list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def names(self) -> list[str]:
        """Return the images' paths within their folder, [] where they are not files."""
        source = self._source
        return [source.name(index) for index in self._indices] if isinstance(source, FolderSource) else []

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Return an image of the other source."""
        return self._source.load(self._indices[index])


def hold_out(source: ImageSource, count: int, seed: int) -> tuple[SubsetSource, SubsetSource]:
    """Split a source at random into the rest and ``count`` held-out images; the same seed gives the same split.

    Raises:
        DataError: nothing would be left to train on.
    """
    if not 0 < count < len(source):
        raise DataError(
            f"cannot hold out {count} of {len(source)} images: between 1 and {len(source) - 1} are possible"
        )
    order = permutation(len(source), seed, "hold-out").tolist()
    return SubsetSource(source, sorted(order[count:])), SubsetSource(source, sorted(order[:count]))


def split_by_class(source: FolderSource, fraction: float, seed: int) -> tuple[SubsetSource, SubsetSource]:
    """Split a folder into training and validation images: the same share of every class, chosen by the seed.

    Of a class with two images or more, at least one goes to either part; of a class with one, a warning says that
    nothing is left for validation.
    """
    labels = torch.tensor(source.labels)
    chosen: list[int] = []
    for label in range(len(source.classes)):
        images = (labels == label).nonzero().flatten()
        if len(images) == 1:
            logger.warning("the class %s has one image: it is trained on, not validated", source.classes[label])
        count = min(max(round(fraction * len(images)), 1), len(images) - 1)
        chosen += images[permutation(len(images), seed, "split", label)[:count]].tolist()
    rest = sorted(set(range(len(source))) - set(chosen))
    return SubsetSource(source, rest), SubsetSource(source, sorted(chosen))


def open_data(options: TrainOptions) -> Splits:
    """Open the data set of a run. The test images of Fashion-MNIST are never among them.

    Raises:
        DataError: something is missing or malformed.
    """
    held_out, seed = options.hold_out, options.seed
    if _is_fashion_mnist(options.data):
        garments = _open_fashion_mnist(options.data, "train")
        statistics = RECORD.preprocessing.mean, RECORD.preprocessing.std
        if held_out:
            return Splits(*hold_out(garments, held_out, seed), *statistics)
        return Splits(garments, None, *statistics)
    root = _existing_folder(options.data)
    plain = not (root / "train").exists() and not (root / "val").exists()
    train = FolderSource(root if plain else root / "train")
    if held_out:
        return Splits(*hold_out(train, held_out, seed))
    if plain and options.val_fraction:
        return Splits(*split_by_class(train, options.val_fraction, seed))
    val = FolderSource(root / "val") if (root / "val").exists() else None
    if val is not None and val.classes != train.classes:
        odd = ", ".join(sorted(set(val.classes) ^ set(train.classes))[:5])
        raise DataError(f"{root / 'val'} and {root / 'train'} hold different classes: {odd} in one only")
    return Splits(train, val)


def open_evaluation(data: str, split: str = "") -> ImageSource:
    """Open what is evaluated: the test images of Fashion-MNIST, or a folder's ``val`` (or the folder itself).

    Args:
        data: a folder, or "fashion-mnist".
        split: a subfolder, or "train" or "test" of Fashion-MNIST; empty takes "test" or "val".

    Raises:
        DataError: something is missing or malformed.
    """
    if _is_fashion_mnist(data):
        if split not in ("", *_IDX_NAMES):
            raise DataError(f"Fashion-MNIST has the splits train and test, not {split!r}")
        return _open_fashion_mnist(data, split or "test")
    root = _existing_folder(data)
    return FolderSource(root / (split or ("val" if (root / "val").is_dir() else "")))


def _is_fashion_mnist(data: str) -> bool:
    return data == "fashion-mnist" or any(_find_idx(Path(data), "train-images-idx3"))


def _existing_folder(data: str) -> Path:
    root = Path(data).expanduser()
    if not root.is_dir():
        there = "is not a folder" if root.exists() else "no such folder"
        raise DataError(f"{data}: {there}; expected train/CLASS/image and val/CLASS/image, or CLASS/image")
    return root


def _open_fashion_mnist(data: str, split: str) -> FashionMNISTSource:
    folder = FASHION_MNIST_FOLDER if data == "fashion-mnist" and not Path(data).exists() else _existing_folder(data)
    files = []
    for stem in (f"{_IDX_NAMES[split]}-images-idx3", f"{_IDX_NAMES[split]}-labels-idx1"):
        found = _find_idx(folder, stem)
        if not found:
            raise DataError(
                f"{folder}: holds no {stem}-ubyte.gz (nor {stem}-ubyte, here or in FashionMNIST/raw); install Debian's "
                "package dataset-fashion-mnist, or name the folder with the four files"
            )
        files.append(found[0])
    return FashionMNISTSource(*files)


def _find_idx(folder: Path, stem: str) -> list[Path]:
    names = (f"{stem}-ubyte", f"{stem}-ubyte.gz")
    places = (folder, folder / "FashionMNIST" / "raw", folder / "raw")
    return [path for place in places for name in names if (path := place / name).is_file()]
