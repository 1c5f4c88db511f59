"""Calibration of int8: check the images that are given for it, and compare the result with the model."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..models.network import ImageModule, check_images
from .base import Run, completed, levels_of

MOST_CHANGED = 0.1
"""Share of the calibration images whose label int8 may change."""
_LARGEST = 30.0
"""Normalised pixels lie within a few units of 0; larger values are pixels that were not scaled."""
_MOST_NOISE = 0.5
"""Norm of the difference from the model's output, over the norm of this, where there are no labels."""


def check_batches(model: ImageModule, calibration: Iterable[Tensor] | None, precision: str) -> list[Tensor]:
    """Return the batches as float32 tensors on the CPU; TypeError or ValueError if they are not normalised images."""
    batches = [calibration] if isinstance(calibration, Tensor) else list(calibration or ())
    for batch in batches:
        if not isinstance(batch, Tensor):
            raise TypeError(f"calibration= takes batches of images, (N, C, H, W) tensors, got {type(batch).__name__}")
        check_images(batch, model.config.name, model.in_chans, model.min_input_size)
        largest = float(batch.abs().max()) if len(batch) else 0.0
        if not largest <= _LARGEST:
            raise ValueError(
                f"calibration= takes images that are prepared as for the model, got values up to {largest:g}: "
                "scale them to [0, 1] and normalise them first"
            )
    batches = [batch.cpu().float() for batch in batches if len(batch)]
    if (precision == "int8") != bool(batches):
        raise ValueError("precision='int8' and calibration= go together: some batches of a few hundred typical images")
    return batches


def check_agreement(model: Run, int8: Run, batches: list[Tensor], labelled: bool) -> None:
    """Compare the int8 form of a model with the model on the calibration images; ValueError if it differs too much.

    The label of an image (in segmentation, of a pixel) is the index of its largest logit. The output of a model without
    labels is compared by its norm.
    """
    same, count, noise, norm = 0.0, 0, 0.0, 0.0
    with torch.inference_mode():
        for images in batches:
            outputs = [levels_of(completed(run)(images)) for run in (int8, model)]
            for values, expected in zip(*outputs, strict=True):
                same += float((values.argmax(1) == expected.argmax(1)).sum())
                count += expected.numel() // expected.shape[1]
                noise += float((values - expected).square().sum())
                norm += float(expected.square().sum())
    change, limit, subject = 1 - same / count, MOST_CHANGED, "labels of the calibration images"
    if not labelled:
        change, limit, subject = (noise / max(norm, 1e-30)) ** 0.5, _MOST_NOISE, "norm of the output"
    if not change <= limit:  # true for NaN as well
        raise ValueError(
            f"int8 changes {change:.0%} of the {subject} (at most {limit:.0%} is accepted): calibrate on more, or more "
            "typical images, or use another precision"
        )
