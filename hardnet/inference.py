"""Images in, labelled predictions out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from .factory import DEFAULT_TAG, WeightsLike, create_model
from .images.batches import prepared, report_unusable, run_in_batches
from .images.inputs import ImageLike, Item, Transform, expand
from .images.preprocess import Preprocessing
from .models.network import HarDNet, ImageModule
from .utils.devices import usable_device
from .utils.errors import ImageError
from .utils.text import check_count, printable
from .weights.catalog import WeightsRecord, read_categories

logger = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Prediction:
    """One class that a picture may show."""

    label: str
    """The name of the class."""
    index: int
    """Of the class, among the logits."""
    probability: float
    """From 0 to 1: the softmax over all classes."""
    source: str
    """The picture: its path as given, or ``<image 3>``, ``<tensor 3>`` by the position among the results."""


@dataclass(frozen=True)
class ImageResult:
    """What became of one picture: predictions, the most probable first, or an error."""

    source: str
    """As in :class:`Prediction`."""
    predictions: tuple[Prediction, ...]
    """Of falling probability; empty where there is an error."""
    error: str | None = None
    """Why there are no predictions; it names the source."""

    @property
    def top(self) -> Prediction:
        """The most probable class.

        Raises:
            ImageError: the picture could not be classified; the message is ``error``.
        """
        if not self.predictions:
            raise ImageError(self.error or f"{printable(self.source)}: there are no predictions")
        return self.predictions[0]


class Classifier:
    """Classifies files, folders, Pillow images and tensors.

    Args:
        model_or_name: the name of a model, or a module that turns (N, 3, H, W) into (N, classes) logits. A module
            is used as it is, not copied: it is switched to evaluation mode and moved to ``device``.
        weights: with a name, what :func:`hardnet.create_model` takes; None means ``IMAGENET1K_V1``. A module has its
            weights already.
        device: ``"auto"`` (CUDA where there is some, else the CPU) or whatever ``torch.device`` takes.
        labels: the names of the classes in the order of the logits, or the path of a text file with one per line.
            None takes those of the weights: of their record, or of a trained model's file. Without these, 1000 classes
            get the ImageNet names, and a log line says so, and any other number gets "class 0", "class 1", ...
        transform: Pillow image -> float tensor (channels, H, W), to be called from several threads. None takes the
            weights' own, as with ``labels``, or else the ImageNet one.
        engine: what runs the model: "eager" is the model itself, "auto" the fastest engine that is installed; see
            :func:`hardnet.accelerate`.
        precision: of the engine.
        calibration: for int8, pictures like those to come, a few hundred: whatever :meth:`predict` takes.

    Threads may share a classifier. It must not be switched to training mode or moved meanwhile.

    Raises:
        ValueError: an unknown name, a device that is not there, labels that do not fit the classes, ``weights`` for
            a module, an engine or a precision that cannot be had.
        TypeError: ``model_or_name`` is neither a name nor a module, or a module of elsewhere is to be accelerated.
        ImportError: the engine's package is missing.
        ImageError: a picture of ``calibration`` is unusable.
        WeightsError: the weights could not be had.
    """

    def __init__(
        self,
        model_or_name: str | nn.Module,
        *,
        weights: WeightsLike | None = None,
        device: str | torch.device = "auto",
        labels: Sequence[str] | str | os.PathLike[str] | None = None,
        transform: Transform | None = None,
        engine: str = "eager",
        precision: str = "fp32",
        calibration: ImageLike | Iterable[ImageLike] | None = None,
    ) -> None:
        self.device = usable_device(device)
        if isinstance(model_or_name, nn.Module):
            if weights is not None:
                raise ValueError("weights= goes with the name of a model: a module has its weights already")
            model = model_or_name
        elif isinstance(model_or_name, str):
            model = create_model(model_or_name, weights=DEFAULT_TAG if weights is None else weights)
        else:
            raise TypeError(f"expected the name of a model or a torch.nn.Module, got {type(model_or_name).__name__}")
        record = getattr(model, "weights_record", None)
        self._record = record if isinstance(record, WeightsRecord) else None
        if transform is None:
            transform = self._record.preprocessing if self._record else Preprocessing()
        self.transform = transform
        self.labels: tuple[str, ...] | None = None if labels is None else _read_labels(labels)
        """The names of the classes; None until the first prediction where the module does not tell how many."""
        classes = getattr(model, "num_classes", None)
        if isinstance(classes, int):
            self.labels = self._labels_for(classes)
        self.model = model.eval().to(self.device)
        if (engine, precision) != ("eager", "fp32") or calibration is not None:
            self.model = self._accelerated(engine, precision, calibration)

    def _accelerated(
        self, engine: str, precision: str, calibration: ImageLike | Iterable[ImageLike] | None
    ) -> nn.Module:
        from .engines import accelerate

        batches = None
        if calibration is not None:
            batches = prepared(expand(calibration), self.model, self.transform)
        model = cast(ImageModule, self.model)  # which `accelerate` checks
        return accelerate(model, engine=engine, precision=precision, calibration=batches)

    def predict(
        self, images: ImageLike | Iterable[ImageLike], topk: int = 5, batch_size: int = 32
    ) -> list[ImageResult]:
        """Classify and return one result per picture, in the order of the input; see :meth:`stream`."""
        return list(self.stream(images, topk, batch_size))

    def stream(
        self, images: ImageLike | Iterable[ImageLike], topk: int = 5, batch_size: int = 32
    ) -> Iterator[ImageResult]:
        """Classify lazily, in bounded memory: an iterator of one result per picture, in the order of the input.

        Pictures are decoded by threads while the model runs. The input is taken ahead of the results by one batch
        and, for decoding, by another one (or 8 pictures where the batches are smaller).

        Args:
            images: the path of a file or a folder (searched with :func:`hardnet.images.list_images`), a Pillow image,
                a tensor, or an iterable of these. A Pillow image is treated like its file: an EXIF orientation that
                it still carries is applied (``ImageOps.exif_transpose`` applies and removes it). A tensor of uint8,
                (3, H, W) or (N, 3, H, W), holds raw RGB values and is preprocessed like a file; one of a floating-
                point type is taken as prepared model input, as it is.
            topk: the number of predictions per picture; no more than there are classes are given.
            batch_size: the most pictures that the model sees at once; it sees only pictures of one size together.

        Raises:
            ImageError: a picture that was handed over alone is unusable, or a folder holds none. Within a folder or
                an iterable it becomes a result with ``error`` set, a warning is logged, and the others go on.
            TypeError: the input is of another type.
            ValueError: ``topk`` or ``batch_size`` is not a whole number from 1 up, or transform, labels and model do
                not fit together.
        """
        for what, value in (("topk", topk), ("batch_size", batch_size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{what} must be a whole number from 1 up, got {value!r}")
        return self._stream(expand(images), topk, batch_size)

    def _stream(self, items: Iterator[Item], topk: int, batch_size: int) -> Iterator[ImageResult]:
        rows = run_in_batches(items, self.model, self.transform, device=self.device, batch_size=batch_size)
        with closing(rows):
            for item, logits in rows:
                if isinstance(logits, ImageError):
                    report_unusable(item, logits, logger)
                    yield ImageResult(item.source, (), str(logits))
                else:
                    yield ImageResult(item.source, self._predictions(item, logits, topk))

    def _predictions(self, item: Item, logits: Tensor, topk: int) -> tuple[Prediction, ...]:
        """(classes,) logits of one picture -> its predictions, the most probable first."""
        labels = self.labels = self._labels_for(len(logits))
        # A stable sort and not topk, whose order of equal values is left open.
        probabilities, order = logits.softmax(0).sort(descending=True, stable=True)
        pairs = zip(probabilities[:topk].tolist(), order[:topk].tolist(), strict=True)
        return tuple(Prediction(labels[index], index, value, item.source) for value, index in pairs)

    def _labels_for(self, classes: int) -> tuple[str, ...]:
        if self.labels is None:
            return self._default_labels(classes)
        if len(self.labels) != classes:
            raise ValueError(f"there are {len(self.labels)} labels, but the model tells {classes} classes apart")
        return self.labels

    def _default_labels(self, classes: int) -> tuple[str, ...]:
        if self._record is not None and self._record.num_classes == classes:
            return self._record.categories
        if classes == IMAGENET_CLASSES:
            logger.info("no labels were given: the model's %d classes get the names of ImageNet's", classes)
            return read_categories("imagenet_classes.txt")
        return tuple(f"class {index}" for index in range(classes))


def _read_labels(labels: Sequence[str] | str | os.PathLike[str]) -> tuple[str, ...]:
    if isinstance(labels, (str, os.PathLike)):
        try:
            text = Path(labels).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise ValueError(f"the labels cannot be read from {printable(os.fspath(labels))}: {error}") from None
        labels = text.removesuffix("\n").split("\n")
    names = tuple(labels)
    for position, name in enumerate(names):
        if not isinstance(name, str):
            raise TypeError(f"labels are names, got {name!r} for class {position}")
        if not name.strip():
            raise ValueError(f"the label of class {position} is blank")
    return names


@dataclass(frozen=True, eq=False)
class Embedding:
    """What became of one picture: a vector, or an error."""

    source: str
    """The picture: its path as given, or ``<image 3>``, ``<tensor 3>`` by the position among the results."""
    vector: Tensor | None
    """(num_features,) in float32, on the CPU."""
    error: str | None = None
    """Why there is no vector; it names the source."""


class Extractor:
    """Turns files, folders, Pillow images and tensors into embeddings of ``num_features`` numbers.

    Args:
        model_or_name: the name of a model, or a :class:`hardnet.HarDNet`, which is used as it is: it is switched to
            evaluation mode and moved to ``device``. Its classifier, if it has one, is not run.
        weights: with a name, what :func:`hardnet.create_model` takes; None means ``IMAGENET1K_V1``.
        device: ``"auto"`` (CUDA where there is some, else the CPU) or whatever ``torch.device`` takes.
        transform: Pillow image -> float tensor (channels, H, W), to be called from several threads. None takes the
            weights' own, or the ImageNet one without a record.

    Raises:
        ValueError: an unknown name, a device that is not there, ``weights`` for a module.
        TypeError: ``model_or_name`` is neither a name nor a HarDNet.
        WeightsError: the weights could not be had.
    """

    def __init__(
        self,
        model_or_name: str | HarDNet,
        *,
        weights: WeightsLike | None = None,
        device: str | torch.device = "auto",
        transform: Transform | None = None,
    ) -> None:
        self.device = usable_device(device)
        if isinstance(model_or_name, HarDNet):
            if weights is not None:
                raise ValueError("weights= goes with the name of a model: a module has its weights already")
            model = model_or_name
        elif isinstance(model_or_name, str):
            model = create_model(model_or_name, weights=DEFAULT_TAG if weights is None else weights, num_classes=0)
        else:
            raise TypeError(f"expected the name of a model or a HarDNet, got {type(model_or_name).__name__}")
        record = model.weights_record
        self.transform = transform or (record.preprocessing if record else Preprocessing())
        self.num_features = model.num_features
        self.model = model.eval().to(self.device)

    def stream(self, images: ImageLike | Iterable[ImageLike], batch_size: int = 32) -> Iterator[Embedding]:
        """Compute lazily, in bounded memory: one embedding per picture, in the order of the input.

        Args:
            images: as for :meth:`hardnet.Classifier.stream`.
            batch_size: the most pictures that the model sees at once.

        Raises:
            ImageError: a picture that was handed over alone is unusable, or a folder holds none. Within a folder or
                an iterable it becomes a result with ``error`` set, a warning is logged, and the others go on.
            TypeError: the input is of another type.
            ValueError: ``batch_size`` is not a whole number from 1 up, or transform and model do not fit together.
        """
        check_count("batch_size", batch_size, least=1)
        return self._stream(expand(images), batch_size)

    def _stream(self, items: Iterator[Item], batch_size: int) -> Iterator[Embedding]:
        rows = run_in_batches(
            items,
            self.model,
            self.transform,
            device=self.device,
            batch_size=batch_size,
            compute=self._pooled,
            what="embeddings of shape ({0}, width)",
        )
        with closing(rows):
            for item, row in rows:
                if isinstance(row, ImageError):
                    report_unusable(item, row, logger)
                    yield Embedding(item.source, None, str(row))
                else:
                    yield Embedding(item.source, row.float())

    def _pooled(self, images: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)
