"""Classify images (Classifier) and compute embeddings (Extractor)."""

from __future__ import annotations  # the API pages name ImageLike, not its parts

import copy
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from ..engines import Accelerated, EngineCache, accelerate
from ..engines.cache import digest_of
from ..factory import create_model
from ..images.batches import Decode, ImageLike, Item, Transform, decode_ahead, expand, is_single, prepare_each
from ..images.preprocess import Preprocessing
from ..models.config import NETWORKS
from ..models.network import HarDNet, ImageModule, warn_if_untrained
from ..utils.devices import usable_device
from ..utils.errors import ImageError
from ..utils.text import printable, split_lines
from ..utils.validation import check_count
from ..weights.catalog import DEFAULT, DEFAULT_MODEL, WeightsRecord
from ..weights.folder import check_categories
from ..weights.load import Loaded, Source, load_weights
from .results import Embedding, ImageResult, Prediction, Results

logger = logging.getLogger(__name__)

_MANY = 10_000  # images from which on the model is converted; a generator counts as so many
Calibration = ImageLike | Iterable[ImageLike]
SourceRow = tuple[str, Tensor | None, str | None]  # image, output of the model, and why there is none


class _Runner:
    """A model on a device with its transform and its engines; what Classifier, Extractor and Segmenter share."""

    _kind: type[nn.Module] = nn.Module  # of modules that may be given

    def __init__(
        self,
        model: Source | nn.Module | None = None,
        *,
        weights: Source | None = DEFAULT,
        device: str | int | torch.device = "auto",
        transform: Transform | None = None,
        engine: str = "auto",
        precision: str = "fp32",
        calibration: Calibration | None = None,
        decode: Decode = "exact",
    ) -> None:
        self.device = usable_device(device)
        module, is_own = self._build(model, weights)
        warn_if_untrained(module)
        self.model = _on_device(module, self.device)
        self.transform: Transform = transform or getattr(module, "preprocessing", None) or self._default_transform()
        if decode not in get_args(Decode):
            raise ValueError(f"decode must be 'exact' or 'fast', got {decode!r}")
        if decode == "fast" and type(self.transform) is not Preprocessing:
            raise ValueError("decode='fast' requires the preprocessing of the weights, not a transform= of your own")
        self.decode = decode
        self.engine: str | None = "eager"
        """Engine of all calls; None if each call chooses one by its number of images."""
        self.precision = precision
        self._digest: str | None = None  # of what an engine was built from
        unchanged = engine in ("auto", "eager") and precision == "fp32" and calibration is None
        self._chooses = unchanged and engine == "auto" and is_own
        if not unchanged:
            batches = None if calibration is None else list(prepare_each(calibration, self.transform, self.model))
            self._digest = digest_of(self.model, batches or ())
            self.model = accelerate(
                cast(ImageModule, self.model),  # checked by accelerate
                engine=engine,
                precision=precision,
                calibration=batches,
                preprocessing=self._preprocessing(),
            )
            self.engine = self.model.engine
        self._connect()

    def _build(self, model: object, weights: Source | None) -> tuple[Any, bool]:
        """Return a module, or the one that a name or a source of weights stands for, and whether it was built here."""
        is_name = model is None or (isinstance(model, str) and model in NETWORKS)
        if not is_name and weights != DEFAULT:
            raise ValueError("weights= goes with the name of a model; modules, files and folders have their weights")
        if isinstance(model, self._kind):
            return model, False
        if model is not None and not isinstance(model, (str, os.PathLike, WeightsRecord, Loaded)):
            kind = self._kind.__name__
            raise TypeError(f"expected the name of a model, weights or a {kind}, got {type(model).__name__}")
        if weights is None:
            return create_model(cast(str, model) or DEFAULT_MODEL).eval(), True
        name, source = cast("str | None", model), cast(Source, model)
        loaded = load_weights(weights, model=name) if is_name else load_weights(source)
        return create_model(loaded.config.name, weights=loaded).eval(), True

    def _default_transform(self) -> Preprocessing:
        return Preprocessing()

    def _preprocessing(self) -> Preprocessing | None:
        """Return the transform if the engines can take over its normalisation."""
        return self.transform if type(self.transform) is Preprocessing else None

    def _connect(self) -> None:
        """Start without a converted form of the model, which is neither copied nor pickled."""
        self._engines = EngineCache(self.model, self._preprocessing()) if self._chooses else None
        self.engine = None if self._chooses else self.engine
        self._run: Callable[[Tensor], object] | None = None

    def fix_engine(self, images: int | None, engine: str | None = None) -> str:
        """Choose the engine for a job of so many images, or take a named one, for all later calls; return its name."""
        if self.engine is None and self._engines is not None:
            self.engine, self._run = self._engines.for_images(images, engine)
        return cast(str, self.engine)

    def describe(self) -> dict[str, Any]:
        """Return what decides the results, as values for JSON; ``engine`` is left out if each call chooses one."""
        run = {"architecture": self._architecture(), "weights": self._digest or digest_of(self.model)}
        run |= {"preprocessing": re.sub(" at 0x[0-9a-fA-F]+", "", repr(self.transform)), "decode": self.decode}
        return run | {"precision": self.precision} | ({} if self.engine is None else {"engine": self.engine})

    def _architecture(self) -> str:
        model = self.model
        return model.config.name if isinstance(model, (Accelerated, ImageModule)) else type(model).__name__

    def _run_module(self, images: Tensor) -> object:
        """Run a module that takes pixels, or floating-point images in its own precision."""
        model = self.model
        if getattr(model, "takes_pixels", False) and getattr(model, "preprocessing", None) == self.transform:
            return model(images)
        if images.dtype == torch.uint8:
            images = cast(Preprocessing, self.transform).normalise(images)
        weight = next((p for p in model.parameters() if p.is_floating_point()), None)
        return model(images if weight is None else images.to(weight.dtype))

    def _rows(self, images: ImageLike | Iterable[ImageLike | Item], batch_size: int) -> Iterator[SourceRow]:
        """Run the model: one row (width,) in float32 per image on the CPU, or why there is none (logged)."""
        check_count("batch_size", batch_size, least=1)
        return self._run_all(expand(images), images, batch_size)

    def _run_all(self, items: Iterator[Item], images: object, batch_size: int) -> Iterator[SourceRow]:
        count, alone = None, is_single(images)
        if self.engine is None and (alone or isinstance(images, (Sized, os.PathLike))):
            start = list(islice(items, _MANY + 1))
            count, items = len(start), chain(start, items)
        run = self._run or self._run_module
        if self.engine is None and self._engines is not None:
            run = self._engines.for_images(count or _MANY)[1]
        with closing(decode_ahead(items, self.transform, self.model, batch_size, self.decode)) as decoded:
            while batch := list(islice(decoded, batch_size)):
                for item, row in self._run_batch(run, batch):
                    if isinstance(row, Tensor):
                        yield item.source, row, None
                    elif alone:
                        raise row
                    else:
                        logger.warning("%s", row)
                        yield item.source, None, str(row)

    def _run_batch(
        self, run: Callable[[Tensor], object], batch: list[tuple[Item, Tensor | ImageError]]
    ) -> list[tuple[Item, Tensor | ImageError]]:
        """Replace the tensors of a batch by rows; those of one shape and type run together."""
        groups: defaultdict[object, list[int]] = defaultdict(list)
        for position, (_, image) in enumerate(batch):
            if isinstance(image, Tensor):
                groups[image.shape, image.dtype, image.device].append(position)
        for positions in groups.values():
            rows, finite = self._output(run, torch.stack([cast(Tensor, batch[position][1]) for position in positions]))
            for position, row, usable in zip(positions, rows, finite.tolist(), strict=True):
                item = batch[position][0]
                error = ImageError(f"{printable(item.source)}: the model's output is infinite or not a number")
                batch[position] = item, row if usable else error
        return batch

    def _output(self, run: Callable[[Tensor], object], images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, channels, H, W) -> rows (N, width) on the CPU, and which of them are finite, (N,)."""
        with torch.inference_mode():
            output = run(images.to(self.device))
            if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(images):
                result = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"the model must return a tensor of shape ({len(images)}, classes), got {result}")
            rows = output.to("cpu", torch.float32)
            return rows, rows.isfinite().all(1)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled and copied: without engines and open libraries, which are built again."""
        return {name: value for name, value in vars(self).items() if name not in ("_engines", "_run")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._connect()


def _on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a module in evaluation mode on a device: itself if it is so, else a copy, sharing weights if possible."""
    tensors = [*model.parameters(), *model.buffers()]
    moved = any((t.device.type, t.device.index or 0) != (device.type, device.index or 0) for t in tensors)
    if not moved and not any(module.training for module in model.modules()):
        return model
    return copy.deepcopy(model).to(device).eval() if moved else _sharing_copy(model).eval()


def _sharing_copy(model: nn.Module) -> Any:
    """Return a copy of a module that shares its parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


class LabellingRunner(_Runner):
    """A runner whose model has classes with names; what Classifier and Segmenter share."""

    def __init__(
        self,
        model: Source | nn.Module | None = None,
        *,
        weights: Source | None = DEFAULT,
        device: str | int | torch.device = "auto",
        labels: Sequence[str] | str | os.PathLike[str] | None = None,
        transform: Transform | None = None,
        engine: str = "auto",
        precision: str = "fp32",
        calibration: Calibration | None = None,
        decode: Decode = "exact",
    ) -> None:
        super().__init__(
            model,
            weights=weights,
            device=device,
            transform=transform,
            engine=engine,
            precision=precision,
            calibration=calibration,
            decode=decode,
        )
        categories: tuple[str, ...] | None = getattr(self.model, "categories", None)
        self.labels: tuple[str, ...] | None = categories if labels is None else _read_labels(labels)
        classes = getattr(self.model, "num_classes", None)
        if isinstance(classes, int):
            self.labels = self._labels_for(classes)

    def describe(self) -> dict[str, Any]:
        """Return what decides the results, with the labels."""
        return super().describe() | {"labels": self.labels and list(self.labels)}

    def __repr__(self) -> str:
        classes = "unknown" if self.labels is None else len(self.labels)
        name = f"{type(self).__name__}({self._architecture()}, classes={classes}"
        return f"{name}, device={str(self.device)!r}, transform={self.transform!r})"

    def _labels_for(self, classes: int) -> tuple[str, ...]:
        if self.labels is None:
            logger.info('the names of the %d classes are unknown, results say "class 0", ...: pass labels=', classes)
            return tuple(f"class {index}" for index in range(classes))
        if len(self.labels) != classes:
            raise ValueError(f"there are {len(self.labels)} labels, but the model has {classes} classes")
        return self.labels


class Classifier(LabellingRunner):
    """Classifies files, folders, Pillow images, NumPy arrays and tensors.

    Args:
        model: the name of a model; a source of weights that says of which model they are, such as the folder of a
            training run (see :func:`hardnet.load_weights`); or a module that turns (N, 3, H, W) into
            (N, classes) logits, which keeps its mode and its device. None means the packaged hardnet39ds, for
            garments.
        weights: with the name of a model, any source of weights: "DEFAULT" is ``IMAGENET1K_V1``, None random weights.
        device: ``"auto"`` (CUDA or MPS if available, else the CPU), the number of a CUDA device, or what
            ``torch.device`` takes.
        labels: the names of the classes in the order of the logits, or the path of a text file with one per line.
            None takes ``model.categories``; without these, "class 0", "class 1", ...
        transform: Pillow image -> float tensor (channels, H, W), to be called from several threads. None takes
            ``model.preprocessing``, or else ImageNet's.
        engine: "eager" is the model itself; others see :func:`hardnet.accelerate`. "auto" chooses once per call, by the
            number of images (:func:`hardnet.engines.choose_engine`). In other precisions than fp32, "auto" is the
            fastest engine that has it. A module is never replaced by "auto" in fp32, since it may change later.
        precision: of the engine.
        calibration: for int8, a few hundred images like those to come: whatever :meth:`predict` takes.
        decode: "exact" gives the pixels of torchvision to the last bit. "fast" decodes large JPEG files at a fraction
            of their size, several times as fast; see ``hardnet.images.batches.Decode``.

    Attributes:
        labels: names of the classes; None until the first prediction if the module does not say how many it has.

    Threads may share a classifier. It can be copied and pickled.

    Raises:
        ValueError: an unknown name, a device that cannot be used, labels that do not fit the classes, ``weights`` for
            a module, an engine or a precision that is not available, "fast" decoding with a transform of your own.
        TypeError: ``model`` is nothing of these, or a module of elsewhere is to be accelerated.
        ImportError: the engine's package is missing.
        ImageError: a picture of ``calibration`` is unusable.
        WeightsError: the weights could not be downloaded from any source.
    """

    def predict(
        self, images: ImageLike | Iterable[ImageLike], topk: int = 5, batch_size: int = 32, threshold: float = 0.0
    ) -> Results:
        """Classify and return one result per image, in the order of the input; see :meth:`stream`."""
        return Results(self.stream(images, topk, batch_size, threshold))

    __call__ = predict

    def stream(
        self,
        images: ImageLike | Iterable[ImageLike | Item],
        topk: int = 5,
        batch_size: int = 32,
        threshold: float = 0.0,
    ) -> Iterator[ImageResult]:
        """Classify lazily, in bounded memory: an iterator of one result per image, in the order of the input.

        Threads decode while the model runs. The input is read ahead of the results by one batch
        and, for decoding, by another one (or 8 images if the batches are smaller).

        Args:
            images: the path of a file or a folder (searched recursively, in natural order of names), a Pillow image,
                the bytes of a file or a file opened for binary reading, a tensor, a NumPy array, or an iterable of
                these. A Pillow image is treated like its file: an EXIF orientation that it still has is applied.
                A tensor of uint8, (3, H, W) or (N, 3, H, W), and an array of uint8, (H, W, 3), (N, H, W, 3), (H, W, 4)
                or (H, W), hold raw values and are preprocessed like a file. A tensor of a floating-point type is
                prepared model input and used as it is.
            topk: the number of predictions per image, at most that of the classes.
            batch_size: the most images that the model gets at once; only images of one size share a batch.
            threshold: the least probability of a prediction, from 0 to 1.

        Raises:
            ImageError: an image that is the whole input is unusable, or a folder has none. Within a folder or
                an iterable it becomes a result with ``error`` set, a warning is logged, and the others go on.
            TypeError: the input is of another type.
            ValueError: ``topk`` or ``batch_size`` is not an integer >= 1, ``threshold`` is out of range, or transform,
                labels and model do not fit together.
        """
        check_count("topk", topk, least=1)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {threshold}")
        return (self._result(*row, topk, threshold) for row in self._rows(images, batch_size))

    def _result(
        self, source: str, logits: Tensor | None, error: str | None, topk: int, threshold: float
    ) -> ImageResult:
        """(classes,) logits of one picture -> its predictions, the most probable first."""
        if logits is None:
            return ImageResult(source, (), error)
        labels = self.labels = self._labels_for(len(logits))
        # A stable sort and not topk, whose order of equal values is left open.
        probabilities, order = logits.softmax(0).sort(descending=True, stable=True)
        pairs = zip(probabilities[:topk].tolist(), order[:topk].tolist(), strict=True)
        return ImageResult(source, tuple(Prediction(labels[i], i, p, source) for p, i in pairs if p >= threshold))


def _read_labels(labels: Sequence[str] | str | os.PathLike[str]) -> tuple[str, ...]:
    if isinstance(labels, (str, os.PathLike)):
        try:
            return check_categories(split_lines(Path(labels).read_bytes().removesuffix(b"\n")))
        except OSError as error:
            raise ValueError(f"the labels cannot be read from {printable(os.fspath(labels))}: {error}") from None
    return check_categories(labels)


class Extractor(_Runner):
    """Turns files, folders, Pillow images and tensors into embeddings of ``num_features`` numbers.

    Args:
        model: as for :class:`Classifier`; a module must be a :class:`hardnet.HarDNet`. Its classifier, if it has one,
            is not run.
        weights, device, transform, engine, precision, calibration, decode: as for :class:`Classifier`.

    Raises:
        TypeError: ``model`` is neither a name, a source of weights nor a HarDNet.
        ValueError, ImportError, ImageError, WeightsError: as for :class:`Classifier`.
    """

    _kind = HarDNet

    def _build(self, model: object, weights: Source | None) -> tuple[HarDNet, bool]:
        module, is_own = super()._build(model, weights)
        module = module if is_own else _sharing_copy(module)
        module.reset_classifier(0)
        self.num_features: int = module.num_features
        return module, is_own

    def stream(self, images: ImageLike | Iterable[ImageLike | Item], batch_size: int = 32) -> Iterator[Embedding]:
        """Compute lazily, in bounded memory: one embedding per picture, in the order of the input.

        Arguments and errors are those of :meth:`hardnet.Classifier.stream`.
        """
        return (Embedding(*row) for row in self._rows(images, batch_size))
