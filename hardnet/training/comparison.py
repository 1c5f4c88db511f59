"""Evaluate several weights one after the other, next to the errors that are reported for them."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..engines import accelerate, choose_engine
from ..factory import create_model
from ..images.preprocess import Preprocessing
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


class EvaluationRow(NamedTuple):
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
        gaps = (getattr(self.measured, name) - getattr(self.reported, name) for name in ("top1_error", "top5_error"))
        return any(abs(gap) > tolerance + 1e-9 for gap in gaps)


def class_names(loaded: Loaded, classes: Sequence[str]) -> Sequence[str]:
    """Return the classes of weights in the order of the logits; as many of the data set if they do not name them."""
    is_imagenet = loaded.record is not None and loaded.record.evaluated_on == IMAGENET  # folders have codes for names
    if loaded.categories is not None and not is_imagenet:
        return loaded.categories
    if loaded.num_classes != len(classes):
        raise WeightsError(f"{loaded.name} has {loaded.num_classes} classes, the data set has {len(classes)}")
    return classes


def resize(base: Preprocessing, crop: int | None, ratio: float | None) -> Preprocessing:
    """Return preprocessing with another centre crop in pixels, or another ratio of its side to the resized one."""
    if crop is None and ratio is None:
        return base
    crop = crop or base.crop
    ratio = base.crop / base.resize if ratio is None else ratio
    if not 0 < ratio <= 1:
        raise ValueError(f"crop_ratio must lie between 0 and 1, got {ratio}")
    return dataclasses.replace(base, crop=crop, resize=max(crop, round(crop / ratio)))


def evaluate_weights(
    loaded: Loaded,
    source: ImageSource,
    ranks: Ranks,
    *,
    size: int | None = None,
    crop_ratio: float | None = None,
    engine: str = "eager",
    precision: str = "fp32",
    calibration: ImageSource | None = None,
    allow_missing_classes: bool = False,
    **options: Any,
) -> EvaluationRow:
    """Evaluate weights on a data set, from which classes may be missing if that is allowed.

    ``size`` and ``crop_ratio`` replace those of the weights, ``calibration`` has images for int8 engines, and
    ``options`` are further keywords of :func:`evaluate`.
    """
    present = set(map(printable, source.classes))
    source = renumber(source, class_names(loaded, source.classes), loaded.name)
    missing = [name for name in map(printable, source.classes) if name not in present]
    if missing and not allow_missing_classes:
        raise DataError(
            f"the data set lacks {counted(len(missing), 'class')} of {loaded.name}: {', '.join(missing[:5])}; "
            "--allow-missing-classes evaluates on the others"
        )
    model = create_model(loaded.config.name, weights=loaded)
    preprocessing = resize(loaded.preprocessing or Preprocessing(), size, crop_ratio)
    predict: Any = model.eval().to(ranks.device).to(memory_format=torch.channels_last)
    engine = choose_engine(model, precision, len(source)) if engine == "auto" else engine
    if (engine, precision) != ("eager", "fp32"):
        batches = None
        if precision == "int8" and calibration is not None:
            count = min(256, len(calibration))  # enough for int8
            spread = [index * len(calibration) // count for index in range(count)]
            batches = [preprocessing(calibration.load(index)[0])[None] for index in spread]
        predict = accelerate(model, engine=engine, precision=precision, calibration=batches)
    measured = evaluate(predict, source, preprocessing, ranks, **options)
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
    root = Path(json.loads(read_file(run / OPTIONS))["data"]).expanduser().resolve()
    if not root.is_dir():
        return 0
    folder, held_out = find_splits(root).get("train", root), read_held_out(run)
    paths = (file.resolve() for file in source.files if isinstance(file, Path))
    return sum(path.is_relative_to(folder) and path.relative_to(root).as_posix() not in held_out for path in paths)
