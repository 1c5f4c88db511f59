"""What a file of ``hardnet train`` says of its weights: the classes, and the preprocessing they were trained with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from .catalog import Preprocessing
from .errors import WeightsError

if TYPE_CHECKING:
    from .preprocess import EvaluationTransform

_LARGEST = 16_384  # pixels


@dataclass(frozen=True)
class FileRecord:
    """A trained model's file: what a :class:`hardnet.WeightsRecord` says of classes and preprocessing."""

    path: str
    categories: tuple[str, ...]
    """The names of the classes, in the order of the logits."""
    preprocessing: Preprocessing

    @property
    def num_classes(self) -> int:
        """The number of the classes."""
        return len(self.categories)

    def transforms(self) -> EvaluationTransform:
        """Return the preprocessing that goes with these weights: PIL image -> (3, crop, crop) tensor.

        Needs torchvision and pillow.
        """
        from .preprocess import EvaluationTransform

        return EvaluationTransform(self.preprocessing)

    def __str__(self) -> str:
        return self.path


def find_file_record(loaded: Any, origin: str) -> FileRecord | None:
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
    return FileRecord(origin, tuple(classes), Preprocessing(told["resize"], told["crop"], mean, std))


def _is_preprocessing(told: dict[Any, Any]) -> bool:
    resize, crop = told.get("resize"), told.get("crop")
    if type(resize) is not int or type(crop) is not int or not 1 <= crop <= resize <= _LARGEST:
        return False
    return all(_is_colour(told.get(key)) for key in ("mean", "std")) and min(told["std"]) > 0


def _is_colour(values: object) -> bool:
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        return False
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)
