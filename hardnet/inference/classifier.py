"""Classify images (Classifier) and compute embeddings (Extractor)."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..factory import WeightsLike, create_model
from ..images.batches import ImageLike, Item, Transform, expand, prepare_batches, prepare_each
from ..images.preprocess import Preprocessing
from ..models.network import HarDNet, ImageModule
from ..utils.devices import usable_device
from ..utils.errors import ImageError
from ..utils.text import printable
from ..utils.validation import check_count
from ..weights.catalog import DEFAULT_TAG, WeightsRecord, read_categories
from .results import Embedding, ImageResult, Prediction

if TYPE_CHECKING:
    from ..engines import EngineCache

logger = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000


class _Runner:
    """A model on a device with its transform; what Classifier and Extractor share."""

    def __init__(self, model: nn.Module, device: torch.device, transform: Transform | None) -> None:
        record = getattr(model, "weights_record", None)
        self._record = record if isinstance(record, WeightsRecord) else None
        self.device = device
        self.transform = transform or (self._record.preprocessing if self._record else Preprocessing())
        self.model = model.eval().to(device)
        self._auto: EngineCache | None = None
        self._images = 0  # so far

    def _forward(self, images: Tensor) -> object:
        if self._auto is None:
            return self.model(images)
        self._images += len(images)
        return self._auto.for_images(self._images)[1](images)

    def _set_engine(
        self, named: bool, engine: str, precision: str, calibration: ImageLike | Iterable[ImageLike] | None
    ) -> None:
        preprocessing = self.transform if type(self.transform) is Preprocessing else None
        if (engine, precision) == ("auto", "fp32") and calibration is None:
            if named:
                from ..engines import EngineCache

                self._auto = EngineCache(self.model, preprocessing)
        elif (engine, precision) != ("eager", "fp32") or calibration is not None:
            from ..engines import accelerate

            self.model = accelerate(
                cast(ImageModule, self.model),  # checked by accelerate
                engine=engine,
                precision=precision,
                calibration=None if calibration is None else prepare_each(calibration, self.transform, self.model),
                preprocessing=preprocessing,
            )

    def _rows(self, items: Iterator[Item], batch_size: int) -> Generator[tuple[Item, Tensor | ImageError], None, None]:
        """Run the model: one row (width,) per image on the CPU, float32 or float64, or why there is none.

        Raises:
            ImageError: an image that is the whole input is unusable; others are logged.
        """
        with closing(prepare_batches(items, self.transform, self.model, batch_size)) as batches:
            for batch in batches:
                for positions, images in batch.stacks():
                    batch.set_rows(positions, self._run(images))
                for item, row in zip(batch.items, batch.outcomes, strict=True):
                    if isinstance(row, ImageError):
                        if item.alone:
                            raise row
                        logger.warning("%s", row)
                    yield item, row

    def _run(self, images: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, width) on the CPU."""
        weight = next((p for p in self.model.parameters() if p.is_floating_point()), None)
        with torch.inference_mode():
            images = images.to(self.device)
            normalises = (
                getattr(self.model if self._auto is None else self._auto, "preprocessing", None) == self.transform
            )
            if images.dtype == torch.uint8 and not normalises:
                images = cast(Preprocessing, self.transform).normalise(images)
            if images.is_floating_point():
                images = images.to(torch.float32 if weight is None else weight.dtype)
            output = self._forward(images)
            if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(images):
                found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"the model must return a tensor of shape ({len(images)}, classes), got {found}")
            return output.to("cpu", torch.promote_types(output.dtype, torch.float32))


def _build(model_or_name: object, kind: type[nn.Module], weights: WeightsLike | None, **options: Any) -> Any:
    """Return the module, or the model of that name with its weights."""
    if isinstance(model_or_name, kind):
        if weights is not None:
            raise ValueError("weights= goes with the name of a model: a module has its weights already")
        return model_or_name
    if isinstance(model_or_name, str):
        return create_model(model_or_name, weights=DEFAULT_TAG if weights is None else weights, **options)
    raise TypeError(f"expected the name of a model or a {kind.__name__}, got {type(model_or_name).__name__}")


class Classifier(_Runner):
    """Classifies files, folders, Pillow images, NumPy arrays and tensors.

    Args:
        model_or_name: the name of a model, or a module that turns (N, 3, H, W) into (N, classes) logits. A module
            is used as it is, not copied: it is switched to evaluation mode and moved to ``device``.
        weights: with a name, what :func:`hardnet.create_model` takes; None means ``IMAGENET1K_V1``. A module has its
            weights already.
        device: ``"auto"`` (CUDA or MPS if available, else the CPU), the number of a CUDA device, or what
            ``torch.device`` takes.
        labels: the names of the classes in the order of the logits, or the path of a text file with one per line.
            None takes those of the weights: of their record, or of a trained model's file. Without these, 1000 classes
            get the ImageNet names, and a log line says so, and any other number gets "class 0", "class 1", ...
        transform: Pillow image -> float tensor (channels, H, W), to be called from several threads. None takes the
            weights' own, as with ``labels``, or else the ImageNet one.
        engine: "eager" is the model itself; others see :func:`hardnet.accelerate`. "auto" starts with the model itself
            and changes to a faster engine when enough images have come (:func:`hardnet.engines.choose_engine`). In
            other precisions than fp32, "auto" is the fastest engine that has it. A module is never replaced by "auto"
            in fp32, since it may change later.
        precision: of the engine.
        calibration: for int8, a few hundred images like those to come: whatever :meth:`predict` takes.

    Threads may share a classifier. It must not be switched to training mode or moved meanwhile.

    Raises:
        ValueError: an unknown name, a device that cannot be used, labels that do not fit the classes, ``weights`` for
            a module, an engine or a precision that is not available.
        TypeError: ``model_or_name`` is neither a name nor a module, or a module of elsewhere is to be accelerated.
        ImportError: the engine's package is missing.
        ImageError: a picture of ``calibration`` is unusable.
        WeightsError: the weights could not be downloaded from any source.
    """

    def __init__(
        self,
        model_or_name: str | nn.Module,
        *,
        weights: WeightsLike | None = None,
        device: str | int | torch.device = "auto",
        labels: Sequence[str] | str | os.PathLike[str] | None = None,
        transform: Transform | None = None,
        engine: str = "auto",
        precision: str = "fp32",
        calibration: ImageLike | Iterable[ImageLike] | None = None,
    ) -> None:
        target = usable_device(device)
        super().__init__(_build(model_or_name, nn.Module, weights), target, transform)
        self.labels: tuple[str, ...] | None = None if labels is None else _read_labels(labels)
        """The names of the classes; None until the first prediction if the module does not say how many it has."""
        classes = getattr(self.model, "num_classes", None)
        if isinstance(classes, int):
            self.labels = self._labels_for(classes)
        self._set_engine(isinstance(model_or_name, str), engine, precision, calibration)

    def __repr__(self) -> str:
        classes = "unknown" if self.labels is None else len(self.labels)
        name = str(self._record) if self._record else type(self.model).__name__
        return f"Classifier({name}, classes={classes}, device={str(self.device)!r}, transform={self.transform!r})"

    def predict(
        self, images: ImageLike | Iterable[ImageLike], topk: int = 5, batch_size: int = 32
    ) -> list[ImageResult]:
        """Classify and return one result per image, in the order of the input; see :meth:`stream`."""
        return list(self.stream(images, topk, batch_size))

    def stream(
        self, images: ImageLike | Iterable[ImageLike | Item], topk: int = 5, batch_size: int = 32
    ) -> Iterator[ImageResult]:
        """Classify lazily, in bounded memory: an iterator of one result per image, in the order of the input.

        Threads decode while the model runs. The input is read ahead of the results by one batch
        and, for decoding, by another one (or 8 images if the batches are smaller).

        Args:
            images: the path of a file or a folder (searched with :func:`hardnet.images.list_images`), a Pillow image,
                the bytes of a file or a file opened for binary reading, a tensor, a NumPy array, or an iterable of
                these. A Pillow image is treated like its file: an EXIF orientation that it still has is applied.
                A tensor of uint8, (3, H, W) or (N, 3, H, W), and an array of uint8, (H, W, 3), (N, H, W, 3), (H, W, 4)
                or (H, W), hold raw values and are preprocessed like a file. A tensor of a floating-point type is
                prepared model input and used as it is.
            topk: the number of predictions per image, at most that of the classes.
            batch_size: the most images that the model gets at once; only images of one size share a batch.

        Raises:
            ImageError: an image that is the whole input is unusable, or a folder has none. Within a folder or
                an iterable it becomes a result with ``error`` set, a warning is logged, and the others go on.
            TypeError: the input is of another type.
            ValueError: ``topk`` or ``batch_size`` is not an integer >= 1, or transform, labels and model do
                not fit together.
        """
        check_count("topk", topk, least=1)
        check_count("batch_size", batch_size, least=1)
        return self._stream(expand(images), topk, batch_size)

    def _stream(self, items: Iterator[Item], topk: int, batch_size: int) -> Iterator[ImageResult]:
        with closing(self._rows(items, batch_size)) as rows:
            for item, logits in rows:
                if isinstance(logits, ImageError):
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
        if self.labels is not None:
            if len(self.labels) != classes:
                raise ValueError(f"there are {len(self.labels)} labels, but the model has {classes} classes")
            return self.labels
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
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"labels are names, got {name!r} for class {position}")
    return names


class Extractor(_Runner):
    """Turns files, folders, Pillow images and tensors into embeddings of ``num_features`` numbers.

    Args:
        model_or_name: the name of a model, or a :class:`hardnet.HarDNet`, which is used as it is: it is switched to
            evaluation mode and moved to ``device``. Its classifier, if it has one, is not run.
        weights, device, transform, engine, precision, calibration: as for :class:`Classifier`.

    Raises:
        TypeError: ``model_or_name`` is neither a name nor a HarDNet.
        ValueError, ImportError, ImageError, WeightsError: as for :class:`Classifier`.
    """

    def __init__(
        self,
        model_or_name: str | HarDNet,
        *,
        weights: WeightsLike | None = None,
        device: str | int | torch.device = "auto",
        transform: Transform | None = None,
        engine: str = "auto",
        precision: str = "fp32",
        calibration: ImageLike | Iterable[ImageLike] | None = None,
    ) -> None:
        target = usable_device(device)
        model: HarDNet = _build(model_or_name, HarDNet, weights, num_classes=0)
        self.num_features: int = model.num_features
        if not isinstance(model_or_name, str) and (engine not in ("auto", "eager") or precision != "fp32"):
            model = copy.deepcopy(model)  # an engine gives the output of the whole model
            model.reset_classifier(0)
        super().__init__(model, target, transform)
        self._set_engine(isinstance(model_or_name, str), engine, precision, calibration)

    def stream(self, images: ImageLike | Iterable[ImageLike | Item], batch_size: int = 32) -> Iterator[Embedding]:
        """Compute lazily, in bounded memory: one embedding per picture, in the order of the input.

        Args:
            images: as for :meth:`hardnet.Classifier.stream`.
            batch_size: the most images that the model gets at once.

        Raises:
            ImageError, TypeError, ValueError: as :meth:`hardnet.Classifier.stream`.
        """
        check_count("batch_size", batch_size, least=1)
        return self._stream(expand(images), batch_size)

    def _stream(self, items: Iterator[Item], batch_size: int) -> Iterator[Embedding]:
        with closing(self._rows(items, batch_size)) as rows:
            for item, row in rows:
                if isinstance(row, ImageError):
                    yield Embedding(item.source, None, str(row))
                else:
                    yield Embedding(item.source, row.float())

    def _forward(self, images: Tensor) -> object:
        if isinstance(self.model, HarDNet) and self._auto is None:
            return self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return super()._forward(images)
