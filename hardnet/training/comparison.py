"""Evaluate several weights one after the other, next to the errors that are reported for them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ..factory import create_model
from ..images.batches import Decode
from ..images.preprocess import Preprocessing
from ..models.network import HarDNet
from ..utils.distributed import Ranks
from ..utils.errors import DataError, WeightsError
from ..utils.files import expand_user
from ..utils.text import counted, printable, split_lines
from ..weights.catalog import IMAGENET, WeightsRecord
from ..weights.files import read_file
from ..weights.load import Loaded, Source
from .checkpoint import OPTIONS, VALIDATION
from .data import ImageSource, find_splits, renumber
from .evaluation import Evaluation, evaluate
from .options import read_recipe


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
    allow_missing_classes: bool = False
    """Whether the data set may lack classes of the weights."""
    decode: str = "exact"
    """As in :class:`hardnet.Classifier`: "exact" or "fast"."""

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
class EvaluationRow:
    """The measured errors of a model with its weights, and the reported ones of weights of the catalogue."""

    model: str
    weights: str
    preprocessing: Preprocessing
    classes: Sequence[str]
    measured: Evaluation
    reported: WeightsRecord | None

    def differs(self, tolerance: float) -> bool:
        """Return whether an error differs from the reported one by more than ``tolerance`` percentage points."""
        if self.reported is None:
            return False
        pairs = ((record.top1_error, record.top5_error) for record in (self.measured, self.reported))
        return any(abs(measured - reported) > tolerance + 1e-9 for measured, reported in zip(*pairs, strict=True))


def class_names(loaded: Loaded, classes: Sequence[str]) -> Sequence[str]:
    """Return the classes of weights in the order of the logits; as many of the data set if they do not name them."""
    is_imagenet = loaded.record is not None and loaded.record.evaluated_on == IMAGENET  # folders have codes for names
    if loaded.categories is not None and not is_imagenet:
        return loaded.categories
    if loaded.num_classes != len(classes):
        raise WeightsError(f"{loaded.name} has {loaded.num_classes} classes, the data set has {len(classes)}")
    return classes


def evaluate_weights(
    loaded: Loaded,
    source: ImageSource,
    ranks: Ranks,
    options: EvaluateOptions,
    calibration: ImageSource | None = None,
) -> EvaluationRow:
    """Evaluate weights on a data set; ``calibration`` has images for int8 engines."""
    present = set(map(printable, source.classes))
    source = renumber(source, class_names(loaded, source.classes), loaded.name)
    missing = [name for name in map(printable, source.classes) if name not in present]
    if missing and not options.allow_missing_classes:
        raise DataError(
            f"the data set lacks {counted(len(missing), 'class')} of {loaded.name}: {', '.join(missing[:5])}; "
            "--allow-missing-classes evaluates on the others"
        )
    model = create_model(loaded.config.name, weights=loaded)
    preprocessing = options.preprocessing(loaded.preprocessing or Preprocessing())
    model = model.eval().to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    measured = evaluate(
        _engine(model, options, preprocessing, calibration, len(source)),
        source,
        preprocessing,
        ranks,
        batch_size=options.batch_size,
        workers=options.workers,
        skip_bad_images=options.skip_bad_images,
        decode=cast(Decode, options.decode),
    )
    record = loaded.record
    title = loaded.name if record is None else record.tag
    return EvaluationRow(loaded.config.name, title, preprocessing, source.classes, measured, record)


def find_run(weights: Source) -> Path | None:
    """Return the folder of the training run that left these weights there; None if there is none."""
    if not isinstance(weights, (str, os.PathLike)):
        return None
    path = expand_user(weights)
    return next((folder for folder in (path, path.parent) if (folder / VALIDATION).is_file()), None)


def read_held_out(run: Path) -> set[str]:
    """Return the names of a run's validation images, as paths within its data set."""
    return set(filter(None, split_lines(read_file(run / VALIDATION))))


def count_trained(run: Path, source: ImageSource) -> int:
    """Return how many images of a data set a run was trained on, as far as its record tells."""
    root = Path(str(read_recipe(os.fspath(run / OPTIONS))[0]["data"])).expanduser().resolve()
    if not root.is_dir():
        return 0
    folder, held_out = find_splits(root).get("train", root), read_held_out(run)
    paths = (file.resolve() for file in source.files if isinstance(file, Path))
    return sum(path.is_relative_to(folder) and path.relative_to(root).as_posix() not in held_out for path in paths)


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
