"""What a file of ``hardnet train`` says of its weights: the classes, and the preprocessing they were trained with."""

from __future__ import annotations

import math
from typing import Any, cast

from ..images.preprocess import Preprocessing
from ..utils.errors import WeightsError
from .catalog import WeightsRecord

_LARGEST = 16_384  # pixels


def find_file_record(loaded: Any, origin: str, model: str) -> WeightsRecord | None:
    """Return what is said in what a file held; None where it says nothing, as a bare state dict.

    Raises:
        WeightsError: what it says makes no sense; the message starts with ``origin``.
    """
    if not isinstance(loaded, dict) or not {"classes", "preprocessing"} <= loaded.keys():
        return None
    classes, told = loaded["classes"], loaded["preprocessing"]
    if not isinstance(classes, list) or not all(isinstance(name, str) and name.strip() for name in classes):
        raise WeightsError(f'{origin}: the entry "classes" must be a list of names')
    if not isinstance(told, dict) or not _is_preprocessing(told):
        raise WeightsError(
            f'{origin}: the entry "preprocessing" must hold resize and crop in pixels (1 <= crop <= resize <= '
            f"{_LARGEST}), and mean and std of three colours"
        )
    mean, std = (cast(tuple[float, float, float], tuple(map(float, told[key]))) for key in ("mean", "std"))
    preprocessing = Preprocessing(told["resize"], told["crop"], mean, std)
    return WeightsRecord(
        model=model,
        tag=origin,
        sources=(),
        provenance=origin,
        top1_error=math.nan,
        top5_error=math.nan,
        reported_by="",
        licence="",
        classes=tuple(classes),
        preprocessing=preprocessing,
    )


def _is_preprocessing(told: dict[Any, Any]) -> bool:
    resize, crop = told.get("resize"), told.get("crop")
    if type(resize) is not int or type(crop) is not int or not 1 <= crop <= resize <= _LARGEST:
        return False
    return all(_is_colour(told.get(key)) for key in ("mean", "std")) and min(told["std"]) > 0


def _is_colour(values: object) -> bool:
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        return False
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)
