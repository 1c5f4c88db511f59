"""Options that follow from the data and the weights: small data sets, fine-tuning, recipes of several stages."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..images.read import read_size
from ..weights.load import Loaded
from .checkpoint import FINAL
from .data import Splits
from .options import TrainOptions

_SIDE_FACTOR = 2.3  # shorter side of a shrunk image over that of a training image: the smallest crop is not enlarged
_CACHE_BYTES = 2 << 30  # largest size of a cache of shrunk images that is derived

# Below so many training images: global batch, learning rate for 256 images, epochs, epochs from weights.
_SMALL = {1_000: (16, 0.4, 150, 40), 10_000: (64, 0.2, 150, 20), 50_000: (128, 0.1, 100, 10)}


def derive_from_data(data: Splits, size: int, ranks: int, *, pretrained: bool) -> dict[str, Any]:
    """Return options for a data set and images of ``size`` pixels that differ from the defaults, ImageNet's."""
    options = derive_from_count(len(data.train), ranks, pretrained=pretrained)
    side = round(size * _SIDE_FACTOR)
    files = data.train.files[:: max(len(data.train) // 25, 1)]
    sides = [min(read_size(file)) for file in files if isinstance(file, Path)]
    if options and sides and len(data.train) * side**2 * 5 < _CACHE_BYTES and statistics.median_high(sides) >= 2 * side:
        options["cache_size"] = side
    return options


def derive_from_count(images: int, ranks: int, *, pretrained: bool) -> dict[str, Any]:
    """Return options for a number of training images; none from 50,000 on."""
    for limit, (batch, lr, epochs, epochs_with_weights) in _SMALL.items():
        if images < limit:
            length = epochs_with_weights if pretrained else epochs
            return {"batch_size": max(min(batch, images) // ranks, 1), "lr": lr, "epochs": length, "min_scale": 0.35}
    return {}


def derive_from_weights(loaded: Loaded) -> dict[str, Any]:
    """Return the model, and the sizes and colours for which weights were trained, as options."""
    preprocessing = loaded.preprocessing
    if preprocessing is None:
        return {"model": loaded.config.name}
    colours = {"mean": preprocessing.mean, "std": preprocessing.std}
    sizes = {"size": preprocessing.crop, "crop_ratio": preprocessing.crop / preprocessing.resize}
    return {"model": loaded.config.name, **sizes, **colours}


def finetune_stages(epochs: int) -> list[dict[str, Any]]:
    """Return the options of the stages of fine-tuning: the head alone for a quarter, then all with layer-wise rates."""
    head = {"freeze": True, "epochs": max(epochs // 4, 1)}
    return [head, {"epochs": epochs, "layer_decay": 0.75, "save_pretrained": True}]


def chain(stages: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> list[TrainOptions]:
    """Return the options of runs that follow each other, each from the final weights of the one before.

    ``values`` take precedence over those of a stage. All runs but the last write to subfolders stage-1, ... of the
    output folder.
    """
    runs: list[TrainOptions] = []
    for number, stage in enumerate(stages, 1):
        run = TrainOptions(**{**stage, **values})
        if runs:
            run = replace(run, weights=str(Path(runs[-1].output) / FINAL))
        if number < len(stages):
            run = replace(run, output=str(Path(run.output) / f"stage-{number}"))
        runs.append(run)
    return runs


def as_flags(options: Mapping[str, Any]) -> str:
    """Return options, none of which is on or off, as they are written on the command line."""
    texts = []
    for name, value in options.items():
        words = value if isinstance(value, (list, tuple)) else [value]
        texts.append(f"--{name.replace('_', '-')} {' '.join(map(str, words))}")
    return " ".join(texts)
