"""Data sets for training and evaluation: open folders of images or Fashion-MNIST, and split them."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..images.read import describe_left_out, find_images, image_extensions, load_image, read_size
from ..utils.distributed import Ranks
from ..utils.errors import DataError, ImageError
from ..utils.progress import progress_bar
from ..utils.text import counted, printable, reason
from .fashion_mnist import RECORD, find_idx, read_garments
from .options import TrainOptions
from .seeds import permutation

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist

# The usual names of splits, in lower case.
_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
_DECODED = 2_000  # up to so many images are decoded before training, of more only the headers are read
_READERS = 8  # threads that read files
_NAMED = 5  # names of files or classes in a message


@dataclass(eq=False)
class ImageSource:
    """A numbered collection of labelled images."""

    classes: Sequence[str]
    """Names of the classes, in the order of their numbers."""
    labels: Sequence[int]
    """The class of each image."""
    names: Sequence[str]
    """Names of the images in messages and lists."""
    files: Sequence[Path | Image.Image]
    """The file of each image, or the image itself."""
    read: Callable[[Path], Image.Image] = load_image
    """Returns the upright RGB image of a file."""

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Return an upright RGB image and the number of its class.

        Raises:
            ImageError: it cannot be read; the message names the file.
        """
        file = self.files[index]
        return self.read(file) if isinstance(file, Path) else file.convert("RGB"), self.labels[index]

    def select(self, indices: Sequence[int]) -> ImageSource:
        """Return some of the images."""
        return replace(
            self,
            labels=[self.labels[index] for index in indices],
            names=[self.names[index] for index in indices],
            files=[self.files[index] for index in indices],
        )


@dataclass(frozen=True)
class Splits:
    """A data set: what to train on, and what to validate on if there is anything."""

    train: ImageSource
    val: ImageSource | None
    left_out: str = ""
    """The files that are no images or cannot be read: kinds and counts."""


def open_folder(root: Path, base: Path | None = None, left_out: Counter[str] | None = None) -> ImageSource:
    """Open the images of ``root/CLASS/...``; classes are numbered in the order of their names, in Unicode NFC.

    What :func:`find_images` skips is skipped, and counted in ``left_out``. The names of images are paths
    within ``base``, or else within ``root``.
    """
    left_out = Counter() if left_out is None else left_out
    files: dict[str, list[Path]] = {}
    for entry in _list_folder(root):
        name = unicodedata.normalize("NFC", entry.name)
        if not entry.is_dir():
            left_out["beside the class folders"] += not name.startswith(".")
        elif name.startswith("."):
            left_out["hidden folders"] += 1
        else:
            paths = files.setdefault(name, [])  # there already where macOS and Linux wrote the same name
            for path, error in find_images(entry, left_out=left_out):
                if error is not None:
                    raise DataError(str(error))
                paths.append(path)
    classes = sorted(files)
    if not classes:
        raise DataError(f"{_text(root)}: no class folders; expected one subfolder of images per class")
    if empty := [name for name in classes if not files[name]]:
        raise DataError(
            f"{_text(root)}: no images in the folders {_text(*empty)}: remove them, or add images; left out: "
            f"{describe_left_out(left_out) or 'nothing'}"
        )
    folded = Counter(map(str.casefold, classes))
    if alike := [name for name in classes if folded[name.casefold()] > 1]:
        raise DataError(f"{_text(root)}: the classes {_text(*alike)} differ in case only: rename or merge them")
    labels = [number for number, name in enumerate(classes) for _ in files[name]]
    paths = [path for name in classes for path in files[name]]
    return ImageSource(tuple(classes), labels, [path.relative_to(base or root).as_posix() for path in paths], paths)


def renumber(source: ImageSource, classes: Sequence[str], owner: str) -> ImageSource:
    """Number the classes of a source by a longer list of names, those of ``owner``."""
    numbers = {printable(name): number for number, name in enumerate(classes)}
    if foreign := [name for name in source.classes if printable(name) not in numbers]:
        raise DataError(f"not among the {len(classes)} classes of {owner}: {_text(*foreign)}")
    labels = [numbers[printable(source.classes[label])] for label in source.labels]
    return replace(source, classes=classes, labels=labels)


def find_splits(root: Path) -> dict[str, Path]:
    """Return the subfolders that are splits of a data set, under "train", "val" and "test".

    Such a folder has one of the usual names, in any case, and holds folders: one that holds images is a class.
    """
    splits: dict[str, Path] = {}
    others, clash = [], []
    for folder in _list_folder(root):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        role = _SPLITS.get(folder.name.casefold())
        if role is None:
            others.append(folder.name)
        elif _holds_images(folder):
            clash.append(folder.name)
        elif role in splits:
            raise DataError(f"{_text(root)}: both {splits[role].name} and {folder.name} are names of the split {role}")
        else:
            splits[role] = folder
    if splits and (clash or (len(splits) == 1 and any(_holds_images(root / name) for name in others))):
        raise DataError(
            f"{_text(root)}: {_text(*(folder.name for folder in splits.values()))} is a split, with folders of classes "
            f"in it, but {_text(*(clash or others))} a class, with images in it: rename or move one of them"
        )
    if splits and others:
        logger.info("%s: left out beside the splits: %s", root, _text(*others))
    return splits


def open_data(options: TrainOptions, ranks: Ranks | None = None) -> Splits:
    """Open the data set of a run, and check that its images can be read.

    Without a folder for validation, ``val_fraction`` of each class is held out of the training images. Test images are
    never used.

    Args:
        options: of the run.
        ranks: the processes that share the check; every one of them must call this function.

    Raises:
        DataError: something is missing or malformed.
        ImageError: images cannot be read, and ``skip_bad_images`` is false.
    """
    if _is_fashion_mnist(options.data):
        return _hold_out(_open_fashion_mnist(options.data, "train"), options)
    root = _existing_folder(options.data)
    splits = find_splits(root)
    if splits and "train" not in splits:
        raise DataError(f"{options.data} holds {_text(*splits)}, but no folder train")
    roots = [splits.get("train", root)]
    if "val" in splits:
        roots.append(splits["val"])
    left_out, parts = Counter[str](), []
    bad: list[str] = []
    for folder in roots:
        source = open_folder(folder, root, left_out)
        if Path(options.output).expanduser().resolve().is_relative_to(folder.resolve()):
            raise DataError(f"the output folder {options.output} lies in {_text(folder)}, among the classes")
        defects = find_defects(source, ranks or Ranks(0, 1, torch.device("cpu")))
        bad += defects.values()
        if len(defects) == len(source):
            raise DataError(f"{_text(folder)}: none of the images can be read; the first: {defects[0]}")
        parts.append(source.select([index for index in range(len(source)) if index not in defects]))
    if bad and not options.skip_bad_images:
        count = counted(len(bad), "image")
        raise ImageError(f"{count} cannot be read (--skip-bad-images leaves them out): {'; '.join(bad[:_NAMED])}")
    for message in bad:
        logger.warning("skipped %s", message)
    left_out["damaged"] += len(bad)
    text = describe_left_out(left_out)
    if len(parts) == 1:
        return _hold_out(parts[0], options, text)
    train, val = parts
    if missing := [name for name in train.classes if name not in val.classes]:
        logger.warning("%s: no folders of the classes %s", roots[1], _text(*missing))
    return Splits(train, renumber(val, train.classes, "the training images"), text)


def find_defects(source: ImageSource, ranks: Ranks) -> dict[int, str]:
    """Return the error messages of files that cannot be read as images, by index; the ranks share the work."""

    def check(index: int) -> None:
        file: Any = source.files[index]
        try:
            load_image(file, least_side=32) if len(source) <= _DECODED else read_size(file)
        except ImageError as error:
            defects[index] = str(error)

    defects: dict[int, str] = {}
    indices = range(ranks.rank, len(source), ranks.size)
    bar = progress_bar(len(indices), "checking", unit="images", enabled=ranks.first, leave=False)
    with ThreadPoolExecutor(_READERS) as pool, bar:
        for _ in pool.map(check, indices):
            bar.update()
    return dict(sorted(item for part in ranks.gather(defects) for item in part.items()))


def open_evaluation(data: str, split: str = "") -> ImageSource:
    """Open what is evaluated: the test images of Fashion-MNIST, or a folder's validation or else test images.

    Args:
        data: a folder, or "fashion-mnist".
        split: "train", "val" or "test", or the name of a subfolder.

    Raises:
        DataError: something is missing or malformed.
    """
    if _is_fashion_mnist(data):
        if split not in ("", "train", "test"):
            raise DataError(f"Fashion-MNIST has the splits train and test, not {split!r}")
        return _open_fashion_mnist(data, split or "test")
    root = folder = _existing_folder(data)
    splits = find_splits(root)
    if split:
        folder = splits.get(split, root / split)
    elif splits:
        folder = splits.get("val") or splits.get("test") or root / "val"
    if not folder.is_dir():
        raise DataError(f"{_text(folder)}: no such folder; choose a subfolder of {_text(data)} with --split")
    return open_folder(folder, root)


def open_listed(data: str, names: Collection[str]) -> ImageSource:
    """Open the images of a folder whose paths within it are listed, as in a run's list of validation images."""
    root = _existing_folder(data)
    for folder in find_splits(root).values() or [root]:
        source = open_folder(folder, root)
        indices = [index for index, name in enumerate(source.names) if name in names]
        if indices:
            return source.select(indices)
    raise DataError(f"{_text(data)}: has none of the {len(names)} validation images of the run")


def _hold_out(source: ImageSource, options: TrainOptions, left_out: str = "") -> Splits:
    """Split a source into training and validation images: a share of every class, by the seed."""
    if not options.val_fraction:
        return Splits(source, None, left_out)
    held_out: list[int] = []
    labels = torch.tensor(source.labels)
    for label, name in enumerate(source.classes):
        images = (labels == label).nonzero().flatten()
        if len(images) == 1:
            logger.warning("the class %s has one image: it is trained on, not validated", _text(name))
        count = min(max(round(options.val_fraction * len(images)), 1), len(images) - 1)
        held_out += images[permutation(len(images), options.seed, "split", label)[:count]].tolist()
    rest = set(range(len(source))).difference(held_out)
    return Splits(source.select(sorted(rest)), source.select(sorted(held_out)), left_out)


def _list_folder(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{_text(folder)}: cannot be listed: {reason(error)}") from None


def _holds_images(folder: Path) -> bool:
    """Return whether a folder itself has images in it, rather than in its subfolders."""
    extensions = image_extensions()
    return any(path.suffix.lower() in extensions and not path.name.startswith(".") for path in _list_folder(folder))


def _text(*names: object) -> str:
    """Return names of files or classes for a message: the first five."""
    texts = [printable(str(name)) for name in names[:_NAMED]]
    return ", ".join([*texts, "..."] if len(names) > _NAMED else texts)


def _is_fashion_mnist(data: str) -> bool:
    return data == "fashion-mnist" or find_idx(Path(data), "train-images-idx3") is not None


def _existing_folder(data: str) -> Path:
    root = Path(data).expanduser()
    if not root.is_dir():
        raise DataError(f"{_text(data)} is no folder; expected train/CLASS/image and val/CLASS/image, or CLASS/image")
    return root


def _open_fashion_mnist(data: str, split: str) -> ImageSource:
    folder = FASHION_MNIST_FOLDER if data == "fashion-mnist" and not Path(data).exists() else _existing_folder(data)
    images, labels = read_garments(folder, split)
    return ImageSource(RECORD.categories, labels, [f"image {index}" for index in range(len(labels))], images)
