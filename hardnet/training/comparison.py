"""Evaluate several weights one after the other, next to the errors that are reported for them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..factory import create_model
from ..images.preprocess import Preprocessing
from ..models.config import CONFIGS
from ..models.network import HarDNet
from ..utils.distributed import Ranks
from ..utils.errors import DataError, WeightsError
from ..weights.catalog import CATALOG, WeightsRecord
from ..weights.folder import read_pretrained
from .data import ImageSource
from .evaluation import Evaluation, evaluate
from .options import check_types


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of an evaluation. None takes the value that belongs to the weights."""

    size: int | None = None
    """Side of the centre crop, in pixels."""
    crop_ratio: float | None = None
    """The crop's side over the resized shorter side."""
    batch_size: int = 64
    workers: int = 0
    engine: str = "eager"
    """As in :func:`hardnet.accelerate`; "eager" is the model itself."""
    precision: str = "fp32"
    skip_bad_images: bool = False
    details: bool = False
    """Whether to count the confusion matrix and list the mistakes."""

    def __post_init__(self) -> None:
        check_types(self)

    def preprocessing(self, base: Preprocessing) -> Preprocessing:
        """Return the weights' preprocessing with the sizes of the options."""
        if self.size is None and self.crop_ratio is None:
            return base
        crop = self.size or base.crop
        ratio = base.crop / base.resize if self.crop_ratio is None else self.crop_ratio
        if not 0 < ratio <= 1:
            raise ValueError(f"crop_ratio must lie between 0 and 1, got {ratio}")
        return dataclasses.replace(base, crop=crop, resize=max(crop, round(crop / ratio)))


@dataclass(frozen=True)
class Row:
    """The measured errors of a model with its weights, and the reported ones of weights of the catalogue."""

    model: str
    weights: str
    preprocessing: Preprocessing
    measured: Evaluation
    reported: WeightsRecord | None

    def differs(self, tolerance: float) -> bool:
        """Tell whether an error differs from the reported one by more than ``tolerance`` percentage points."""
        if self.reported is None:
            raise ValueError(f"no errors of {self.weights} are reported: --expect takes weights of the catalogue only")
        differences = (
            self.measured.top1_error - self.reported.top1_error,
            self.measured.top5_error - self.reported.top5_error,
        )
        return max(map(abs, differences)) > tolerance + 1e-9


def choose(models: Sequence[str], weights: str | None, classes: int) -> list[tuple[str, str | WeightsRecord]]:
    """Return which weights of which models to evaluate.

    Args:
        models: names; empty takes all models for which there are weights.
        weights: a tag, a file or a folder; None takes every record of the catalogue.
        classes: how many the data set has: records with another number are left out.

    Raises:
        ValueError: nothing is left.
    """
    if not models and weights is not None and Path(weights).is_dir():
        models = [read_pretrained(weights).config.name]
    if weights is not None and Path(weights).exists():
        if len(models) != 1:
            raise ValueError(f"{weights} is a file: name the one model that it belongs to")
        return [(models[0], weights)]
    records = [record for record in CATALOG.values() if record.model in (models or CONFIGS)]
    if weights is not None:
        records = [record for record in records if record.tag == weights]
        if not records:
            raise ValueError(f"{weights!r} is neither a file nor the tag of weights of {', '.join(models or CONFIGS)}")
    fitting = [record for record in records if record.num_classes == classes]
    if not fitting:
        known = ", ".join(f"{record} ({record.num_classes} classes)" for record in records) or "none"
        raise ValueError(f"no weights for the {classes} classes of the data set; of the models asked for: {known}")
    return [(record.model, record) for record in fitting]


def check_classes(model: HarDNet, title: str, classes: Sequence[str]) -> None:
    """Check that a model has the classes of a data set.

    Raises:
        WeightsError: it has another number of classes.
        DataError: it was trained on classes with other names, which are known if they were names of folders.
    """
    if model.num_classes != len(classes):
        raise WeightsError(f"{title} has {model.num_classes} classes, the data set has {len(classes)}")
    record = model.weights_record
    if isinstance(record, WeightsRecord) and not record.sources:
        for trained, found in zip(record.categories, classes, strict=False):
            if trained != found:
                raise DataError(f"{title} was trained on other classes: {trained!r}, the data set has {found!r}")


def compare(
    chosen: Sequence[tuple[str, str | WeightsRecord]],
    source: ImageSource,
    ranks: Ranks,
    options: EvaluateOptions,
    calibration: ImageSource | None = None,
) -> Iterator[Row]:
    """Evaluate models one after the other and yield a row for each; ``calibration`` has images for int8 engines.

    Raises:
        WeightsError: weights cannot be loaded or have another number of classes than the data set.
        DataError: a trained model has other classes than the data set.
        ImageError: an image cannot be read, and bad ones are not to be skipped.
        TrainingError: logits are not finite.
    """
    for name, weights in chosen:
        model = create_model(name, weights=weights, progress=ranks.first)
        record = model.weights_record
        title = record.tag if isinstance(record, WeightsRecord) else os.fspath(str(weights))
        check_classes(model, title, source.classes)
        preprocessing = options.preprocessing(Preprocessing() if record is None else record.preprocessing)
        model = model.eval().to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        measured = evaluate(
            _engine(model, options, preprocessing, calibration, len(source)),
            source,
            preprocessing,
            ranks,
            batch_size=options.batch_size,
            workers=options.workers,
            skip_bad_images=options.skip_bad_images,
            details=options.details,
        )
        reported = record if isinstance(record, WeightsRecord) and record.sources else None
        yield Row(name, title, preprocessing, measured, reported)


def _engine(
    model: HarDNet, options: EvaluateOptions, transform: Preprocessing, calibration: ImageSource | None, images: int
) -> Callable[[Tensor], Tensor]:
    from ..engines import CALIBRATION_IMAGES, accelerate, choose_engine

    engine = choose_engine(model, options.precision, images) if options.engine == "auto" else options.engine
    if (engine, options.precision) == ("eager", "fp32"):
        return model

    batches = None
    if options.precision == "int8" and calibration is not None:
        count = min(CALIBRATION_IMAGES, len(calibration))
        spread = [index * len(calibration) // count for index in range(count)]
        batches = [transform(calibration.load(index)[0])[None] for index in spread]
    return accelerate(model, engine=engine, precision=options.precision, calibration=batches)
