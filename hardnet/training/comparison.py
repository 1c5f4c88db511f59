"""Measured beside reported: evaluate several models and weights on one data set."""

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
from ..utils.errors import WeightsError
from ..weights.catalog import CATALOG, WeightsRecord
from .data import ImageSource
from .distributed import Ranks
from .errors import DataError
from .evaluation import Evaluation, evaluate


@dataclass(frozen=True)
class EvaluateOptions:
    """How to evaluate. None takes what belongs to the weights."""

    size: int | None = None
    """Side of the centre crop, in pixels."""
    crop_ratio: float | None = None
    """The crop's side over the resized shorter side."""
    batch_size: int = 64
    workers: int = 0
    engine: str = "eager"
    """As in :func:`hardnet.accelerate`; "eager" is the model itself."""
    precision: str = "fp32"
    channels_last: bool = True
    skip_bad_images: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 32:
            raise ValueError(f"size must be at least 32 pixels, got {self.size}")
        if self.crop_ratio is not None and not 0 < self.crop_ratio <= 1:
            raise ValueError(f"crop_ratio must lie between 0 and 1, got {self.crop_ratio}")
        if self.batch_size < 1 or self.workers < 0:
            raise ValueError(
                f"batch_size must be positive, workers not negative, got {self.batch_size}, {self.workers}"
            )

    def preprocessing(self, base: Preprocessing) -> Preprocessing:
        """Return the weights' preprocessing with the sizes that were asked for."""
        if self.size is None and self.crop_ratio is None:
            return base
        crop = self.size or base.crop
        ratio = self.crop_ratio or base.crop / base.resize
        return dataclasses.replace(base, crop=crop, resize=max(crop, round(crop / ratio)))


@dataclass(frozen=True)
class Row:
    """One model with its weights, measured; with what was reported of them where they are the catalogue's."""

    model: str
    weights: str
    preprocessing: Preprocessing
    measured: Evaluation
    reported: WeightsRecord | None

    def differs(self, tolerance: float) -> bool:
        """Tell whether an error differs from the reported one by more than ``tolerance`` percentage points."""
        if self.reported is None:
            raise ValueError(f"nothing is reported of {self.weights}: only weights of the catalogue can be expected")
        differences = (
            self.measured.top1_error - self.reported.top1_error,
            self.measured.top5_error - self.reported.top5_error,
        )
        return max(map(abs, differences)) > tolerance + 1e-9


def choose(models: Sequence[str], weights: str | None, classes: int) -> list[tuple[str, str | WeightsRecord]]:
    """Return which weights of which models to evaluate.

    Args:
        models: names; empty takes all models for which there are weights.
        weights: a tag or a file; None takes every record of the catalogue.
        classes: how many the data set has: records with another number are left out.

    Raises:
        ValueError: nothing is left.
    """
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


def compare(
    chosen: Sequence[tuple[str, str | WeightsRecord]],
    source: ImageSource,
    ranks: Ranks,
    options: EvaluateOptions,
    calibration: ImageSource | None = None,
) -> Iterator[Row]:
    """Evaluate one after the other and yield a row for each.

    Args:
        chosen: names, and the weights of each.
        source: the images and their classes.
        ranks: the processes that share the work.
        options: how to evaluate.
        calibration: other images, of the same kind, for an int8 engine.

    Raises:
        WeightsError: weights cannot be had, do not fit, or have other classes than the data set.
        ImageError: an image cannot be read, and bad ones are not to be skipped.
        TrainingError: logits are not finite.
    """
    for name, weights in chosen:
        model = create_model(name, weights=weights, progress=ranks.first)
        record = model.weights_record
        title = record.tag if isinstance(record, WeightsRecord) else os.fspath(str(weights))
        if isinstance(record, WeightsRecord) and not record.sources:
            _check_classes(record, source)
        if model.num_classes != len(source.classes):
            raise WeightsError(f"{title} has {model.num_classes} classes, the data set has {len(source.classes)}")
        preprocessing = options.preprocessing(Preprocessing() if record is None else record.preprocessing)
        model = model.eval().to(ranks.device)
        if options.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]
        measured = evaluate(
            _engine(model, options, preprocessing, calibration),
            source,
            preprocessing,
            ranks,
            batch_size=options.batch_size,
            workers=options.workers,
            skip_bad_images=options.skip_bad_images,
            channels_last=options.channels_last,
            progress=ranks.first,
        )
        yield Row(
            name,
            title,
            preprocessing,
            measured,
            record if isinstance(record, WeightsRecord) and record.sources else None,
        )


def _engine(
    model: HarDNet, options: EvaluateOptions, transform: Preprocessing, calibration: ImageSource | None
) -> Callable[[Tensor], Tensor]:
    if (options.engine, options.precision) == ("eager", "fp32"):
        return model
    from ..engines import CALIBRATION_IMAGES, accelerate

    batches = None
    if options.precision == "int8" and calibration is not None:
        count = min(CALIBRATION_IMAGES, len(calibration))
        spread = [index * len(calibration) // count for index in range(count)]
        batches = [transform(calibration.load(index)[0])[None] for index in spread]
    example = torch.zeros(1, 3, *2 * (transform.crop,), device=next(model.parameters()).device)
    return accelerate(
        model, engine=options.engine, precision=options.precision, example_input=example, calibration=batches
    )


def _check_classes(record: WeightsRecord, source: ImageSource) -> None:
    """Refuse a model that was trained on other classes.

    Raises:
        DataError: a name, or their number, differs.
    """
    if list(record.categories) == list(source.classes):
        return
    pairs = zip(record.categories, source.classes, strict=False)
    counts = (f"{record.num_classes} classes", f"{len(source.classes)} classes")
    trained, found = next(((one, other) for one, other in pairs if one != other), counts)
    raise DataError(f"{record}: was trained on other classes: {trained!r} where the data set has {found!r}")
