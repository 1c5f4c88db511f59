"""Data sets for training and evaluation: open folders of images or Fashion-MNIST, and split them."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from ..images.preprocess import Preprocessing
from ..images.read import describe_left_out, find_images, image_extensions, load_image, read_size
from ..utils.distributed import Ranks
from ..utils.errors import DataError, ImageError
from ..utils.progress import progress_bar
from ..utils.text import printable, reason
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
_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""The usual names of the folders of a split, in lower case."""
_DECODED = 2_000
"""Images of a data set up to which all are decoded before training, not only their headers read."""
_READERS = 8
"""Threads that read files."""
_NAMED = 5
"""Names of files or classes in a message."""


class ImageSource(Protocol):
    """A numbered collection of labelled images."""

    classes: Sequence[str]
    """Their names, in the order of their numbers."""

    @property
    def labels(self) -> Sequence[int]:
        """The class of each image."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return how an image is called in messages and lists."""

    def path(self, index: int) -> Path | None:
        """Return the file of an image, None if it is none."""

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
    """Of each colour."""
    left_out: str = ""
    """The files that are no images or cannot be read here: kinds and counts."""
    bad: list[str] = field(default_factory=list)
    """Error messages of the images that were left out since they cannot be read."""


class FolderSource:
    """The images of ``root/CLASS/...``; classes are numbered in the order of their names, which are in Unicode NFC.

    Hidden files and folders are skipped, as are files that :func:`hardnet.images.list_images` skips.

    Args:
        root: the folder.
        classes: the classes to number by, if they are known; ``root`` may lack some of them.
        base: the folder of the data set; None takes ``root``.

    Raises:
        DataError: there are no class folders, one has no images or is not among ``classes``, or two names differ in
            case only.
    """

    def __init__(self, root: Path, classes: Sequence[str] | None = None, base: Path | None = None) -> None:
        self.root = root
        self._base = base or root
        self.left_out = Counter[str]()
        folders = self._class_folders()
        self.classes: Sequence[str] = tuple(sorted(folders)) if classes is None else tuple(classes)
        numbers = {unicodedata.normalize("NFC", name): number for number, name in enumerate(self.classes)}
        if foreign := sorted(folders.keys() - numbers.keys()):
            raise DataError(f"{_text(root)}: not among the {len(numbers)} classes: {_text(*foreign)}")
        self.missing = [name for name in numbers if name not in folders]
        self.paths: list[Path] = []
        self.labels: list[int] = []
        empty = []
        for name in sorted(folders):
            before = len(self.paths)
            for folder in folders[name]:
                self.paths += self._images(folder)
            self.labels += [numbers[name]] * (len(self.paths) - before)
            empty += [name] if len(self.paths) == before else []
        if empty:
            skipped = describe_left_out(self.left_out)
            raise DataError(
                f"{_text(root)}: no images in the folders {_text(*empty)}: remove them, or add images"
                + (f"; left out: {skipped}" if skipped else "")
            )

    def _class_folders(self) -> dict[str, list[Path]]:
        """Return the folders of each class; there are two where macOS and Linux wrote the same name."""
        folders: dict[str, list[Path]] = {}
        for entry in _list_folder(self.root):
            if not entry.is_dir():
                self.left_out["beside the class folders"] += not entry.name.startswith(".")
            elif entry.name.startswith("."):
                self.left_out["hidden folders"] += 1
            else:
                folders.setdefault(unicodedata.normalize("NFC", entry.name), []).append(entry)
        folded: dict[str, str] = {}
        for name in sorted(folders):
            other = folded.setdefault(name.casefold(), name)
            if other != name:
                raise DataError(
                    f"{_text(self.root)}: the classes {_text(other)} and {_text(name)} differ in case only: rename or "
                    "merge them"
                )
        if not folders:
            raise DataError(f"{_text(self.root)}: no class folders; expected one subfolder of images per class")
        return folders

    def _images(self, folder: Path) -> Iterator[Path]:
        for path, error in find_images(folder, left_out=self.left_out):
            if error is not None:
                raise DataError(str(error))
            yield path

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return an image's path within ``base``."""
        return self.paths[index].relative_to(self._base).as_posix()

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.paths[index]

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Return an upright RGB image and its class."""
        return load_image(self.paths[index]), self.labels[index]


class SubsetSource:
    """Some images of another source, perhaps with their classes numbered by a longer list of names."""

    def __init__(self, source: ImageSource, indices: Sequence[int], classes: Sequence[str] | None = None) -> None:
        self.classes = source.classes if classes is None else classes
        numbers = {printable(name): number for number, name in enumerate(self.classes)}
        self.labels = [numbers[printable(source.classes[source.labels[index]])] for index in indices]
        self._source = source
        self._indices = list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        """Return an image's name in the other source."""
        return self._source.name(self._indices[index])

    def path(self, index: int) -> Path | None:
        """Return an image's file in the other source."""
        return self._source.path(self._indices[index])

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Return an image of the other source."""
        return self._source.load(self._indices[index])[0], self.labels[index]


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


def split_by_class(source: ImageSource, fraction: float, seed: int) -> tuple[SubsetSource, SubsetSource]:
    """Split a source into training and validation images: the same share of every class, chosen by the seed.

    Of a class with two images or more, at least one goes to either part; of a class with one, a warning says that
    nothing is left for validation.
    """
    labels = torch.tensor(source.labels)
    validated: list[int] = []
    for label in range(len(source.classes)):
        images = (labels == label).nonzero().flatten()
        if len(images) == 1:
            logger.warning("the class %s has one image: it is trained on, not validated", _text(source.classes[label]))
        count = min(max(round(fraction * len(images)), 1), len(images) - 1)
        validated += images[permutation(len(images), seed, "split", label)[:count]].tolist()
    rest = sorted(set(range(len(source))) - set(validated))
    return SubsetSource(source, rest), SubsetSource(source, sorted(validated))


def find_splits(root: Path) -> dict[str, Path]:
    """Return the subfolders that are splits of a data set, under "train", "val" and "test".

    Such a folder has one of the usual names, in any case, and holds folders: a folder of images with such a name is a
    class.

    Raises:
        DataError: it cannot be told what is a split and what a class.
    """
    splits: dict[str, Path] = {}
    others = []
    for folder in _list_folder(root):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        role = next((role for role, names in _SPLITS.items() if folder.name.casefold() in names), None)
        if role is None or _holds_images(folder):
            others.append(folder.name)
        elif role in splits:
            raise DataError(f"{_text(root)}: both {splits[role].name} and {folder.name} are names of the split {role}")
        else:
            splits[role] = folder
    clash = [name for name in others if any(name.casefold() in names for names in _SPLITS.values())]
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

    Without a folder for validation, ``hold_out`` images, or else ``val_fraction`` of each class, are held out of the
    training images. Folders and files for tests are never used.

    Args:
        options: of the run.
        ranks: the processes that share the check; every one of them must call this function.

    Raises:
        DataError: something is missing or malformed.
        ImageError: images cannot be read, and ``skip_bad_images`` is false.
    """
    if _is_fashion_mnist(options.data):
        statistics = RECORD.preprocessing.mean, RECORD.preprocessing.std
        return Splits(*_hold_out(_open_fashion_mnist(options.data, "train"), options), *statistics)
    root = _existing_folder(options.data)
    splits = find_splits(root)
    if splits and "train" not in splits:
        raise DataError(f"{options.data} holds {_text(*splits)}, but no folder train")
    folders = [FolderSource(splits.get("train", root), base=root)]
    if "val" in splits and not options.hold_out:
        folders.append(FolderSource(splits["val"], folders[0].classes, root))
        if folders[1].missing:
            logger.warning("%s: no folders of the classes %s", splits["val"], _text(*folders[1].missing))
    parts, bad = [], []
    for folder in folders:
        if Path(options.output).expanduser().resolve().is_relative_to(folder.root.resolve()):
            raise DataError(f"the output folder {options.output} lies in {_text(folder.root)}, among the classes")
        defects = find_defects(folder, ranks)
        bad += list(defects.values())
        parts.append(SubsetSource(folder, [index for index in range(len(folder)) if index not in defects]))
        if not len(parts[-1]):
            raise DataError(f"{_text(folder.root)}: none of the images can be read; the first: {bad[-len(folder)]}")
    for message in bad if options.skip_bad_images else ():
        logger.warning("skipped %s", message)
    if bad and not options.skip_bad_images:
        first = "; ".join(bad[:_NAMED]) + (f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else "")
        raise ImageError(f"{first} (--skip-bad-images leaves such files out)")
    train, val = parts if len(parts) == 2 else _hold_out(parts[0], options)
    left_out = sum((folder.left_out for folder in folders), Counter[str]())
    return Splits(train, val, left_out=describe_left_out(left_out), bad=bad)


def find_defects(source: FolderSource, ranks: Ranks | None = None) -> dict[int, str]:
    """Return what is wrong with images that cannot be read, by their index.

    Up to 2,000 images are decoded, of more the headers are read.
    """
    first, step = (ranks.rank, ranks.size) if ranks else (0, 1)
    indices = range(first, len(source), step)
    decode = len(source) <= _DECODED
    defects = {}
    with (
        ThreadPoolExecutor(_READERS) as pool,
        progress_bar(len(indices), "checking", unit="images", enabled=not first, leave=False) as bar,
    ):
        for index, defect in pool.map(lambda index: (index, _defect(source.paths[index], decode)), indices):
            bar.update()
            if defect:
                defects[index] = defect
    gathered = ranks.gather(defects) if ranks else [defects]
    return dict(sorted(item for part in gathered for item in part.items()))


def _defect(path: Path, decode: bool) -> str:
    try:
        if decode:
            load_image(path, least_side=32)
        else:
            read_size(path)
    except ImageError as error:
        return str(error)
    return ""


def open_evaluation(data: str, split: str = "", classes: Sequence[str] | None = None) -> ImageSource:
    """Open what is evaluated: the test images of Fashion-MNIST, or a folder's validation or else test images.

    Args:
        data: a folder, or "fashion-mnist".
        split: "train", "val" or "test", or the name of a subfolder.
        classes: those of the model, of which a folder may lack some; None takes those of the data set.

    Raises:
        DataError: something is missing or malformed.
    """
    if _is_fashion_mnist(data):
        if split not in ("", *_IDX_NAMES):
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
    return FolderSource(folder, classes, root)


def open_listed(data: str, names: Collection[str]) -> ImageSource:
    """Open the images of a folder whose paths within it are listed, as in a run's list of validation images.

    Raises:
        DataError: the folder has none of them.
    """
    root = _existing_folder(data)
    for folder in find_splits(root).values() or [root]:
        source = FolderSource(folder, base=root)
        indices = [index for index in range(len(source)) if source.name(index) in names]
        if indices:
            return SubsetSource(source, indices)
    raise DataError(f"{_text(data)}: has none of the {len(names)} validation images of the run")


def _hold_out(source: ImageSource, options: TrainOptions) -> tuple[ImageSource, ImageSource | None]:
    if options.hold_out:
        return hold_out(source, options.hold_out, options.seed)
    if options.val_fraction:
        return split_by_class(source, options.val_fraction, options.seed)
    return source, None


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
    return data == "fashion-mnist" or any(_find_idx(Path(data), "train-images-idx3"))


def _existing_folder(data: str) -> Path:
    root = Path(data).expanduser()
    if not root.is_dir():
        there = "is not a folder" if root.exists() else "no such folder"
        raise DataError(f"{_text(data)}: {there}; expected train/CLASS/image and val/CLASS/image, or CLASS/image")
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
