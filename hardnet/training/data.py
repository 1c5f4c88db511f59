"""Data sets for training and evaluation: open folders of images or Fashion-MNIST, and split them."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from ..images.preprocess import Preprocessing
from ..utils.errors import DataError
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

        if not root.is_dir():
            there = "is not a folder" if root.exists() else "no such folder"
            raise DataError(f"{root}: {there}; expected a folder with one subfolder of images per class")
        if not any(entry.is_dir() for entry in os.scandir(root)):
            raise DataError(
                f"{root}: holds no subfolders; the images are expected in one subfolder per class, as in "
                f"{root / 'n01440764' / 'image.JPEG'}"
            )
        try:
            folder = ImageFolder(str(root))
        except FileNotFoundError as error:  # torchvision names the classes without images
            raise DataError(f"{root}: {error}") from None
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


def is_fashion_mnist(data: str, dataset: str = "auto") -> bool:
    """Tell whether a data argument means Fashion-MNIST: by its name, by the option, or by the files in the folder."""
    if dataset != "auto":
        return dataset == "fashion-mnist"
    return data == "fashion-mnist" or any(_idx_candidates(Path(data), "train-images-idx3"))


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


def open_splits(
    data: str, dataset: str = "auto", *, held_out: int = 0, seed: int = 0, val_fraction: float = 0.2
) -> Splits:
    """Open a data set for training. The test images of Fashion-MNIST are never among them.

    Args:
        data: a folder with ``train`` and, unless images are held out, perhaps ``val``; or that of Fashion-MNIST.
        dataset: "imagefolder", "fashion-mnist", or "auto", which looks for the latter's files.
        held_out: how many training images to keep for validation instead.
        seed: decides which.
        val_fraction: of a plain folder CLASS/image, the share of each class that is kept for validation; 0 for none.

    Raises:
        DataError: something is missing or malformed.
    """
    if is_fashion_mnist(data, dataset):
        train: ImageSource = _open_fashion_mnist(data, "train")
        statistics = RECORD.preprocessing.mean, RECORD.preprocessing.std
        if not held_out:
            return Splits(train, None, *statistics)
        return Splits(*hold_out(train, held_out, seed), *statistics)
    root = _existing_folder(data)
    plain = not (root / "train").exists() and not (root / "val").exists()
    train = FolderSource(root if plain else root / "train")
    if plain and val_fraction and not held_out:
        return Splits(*split_by_class(train, val_fraction, seed))
    if held_out:
        return Splits(*hold_out(train, held_out, seed))
    val_root = root / "val"
    val = FolderSource(val_root) if val_root.exists() else None
    if val is not None and tuple(val.classes) != tuple(train.classes):
        odd = sorted(set(val.classes) ^ set(train.classes))
        raise DataError(f"{val_root} and {root / 'train'} hold different classes: {', '.join(odd[:5])} in one only")
    return Splits(train, val)


def open_data(options: TrainOptions) -> Splits:
    """Open the data set of a run, as :func:`open_splits` does."""
    return open_splits(
        options.data,
        options.dataset,
        held_out=options.hold_out,
        seed=options.seed,
        val_fraction=options.val_fraction,
    )


def open_evaluation(data: str, dataset: str = "auto", split: str = "") -> ImageSource:
    """Open what is evaluated: the test images of Fashion-MNIST, or a folder's ``val`` (or the folder itself).

    Args:
        data: a folder, or "fashion-mnist".
        dataset: as in :func:`open_splits`.
        split: a subfolder, or "train" or "test" of Fashion-MNIST; empty takes "test" or "val".

    Raises:
        DataError: something is missing or malformed.
    """
    if is_fashion_mnist(data, dataset):
        if split not in ("", *_IDX_NAMES):
            raise DataError(f"Fashion-MNIST has the splits train and test, not {split!r}")
        return _open_fashion_mnist(data, split or "test")
    root = _existing_folder(data)
    if split:
        return FolderSource(root / split)
    return FolderSource(root / "val" if (root / "val").is_dir() else root)


def _existing_folder(data: str) -> Path:
    root = Path(data).expanduser()
    if not root.is_dir():
        there = "is not a folder" if root.exists() else "no such folder"
        raise DataError(f"{data}: {there}; expected train/CLASS/image and val/CLASS/image, or CLASS/image")
    return root


def _fashion_mnist_folder(data: str) -> Path:
    if data == "fashion-mnist" and not Path(data).exists():
        if not FASHION_MNIST_FOLDER.is_dir():
            raise DataError(
                f"{FASHION_MNIST_FOLDER}: no such folder; install Debian's package dataset-fashion-mnist, or name the "
                "folder that holds train-images-idx3-ubyte.gz and the other three files"
            )
        return FASHION_MNIST_FOLDER
    return _existing_folder(data)


def _open_fashion_mnist(data: str, split: str) -> FashionMNISTSource:
    folder = _fashion_mnist_folder(data)
    return FashionMNISTSource(
        *(_find_idx(folder, f"{_IDX_NAMES[split]}-{what}") for what in ("images-idx3", "labels-idx1"))
    )


def _idx_candidates(folder: Path, stem: str) -> list[Path]:
    names = (f"{stem}-ubyte", f"{stem}-ubyte.gz")
    places = (folder, folder / "FashionMNIST" / "raw", folder / "raw")
    return [path for place in places for name in names if (path := place / name).is_file()]


def _find_idx(folder: Path, stem: str) -> Path:
    found = _idx_candidates(folder, stem)
    if not found:
        raise DataError(f"{folder}: holds no {stem}-ubyte.gz (nor {stem}-ubyte, here or in FashionMNIST/raw)")
    return found[0]
