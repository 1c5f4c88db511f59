"""HarDNet (Harmonic DenseNet) image classifiers for PyTorch.

>>> import hardnet
>>> model = hardnet.create_model("hardnet39ds", num_classes=10)
"""

from typing import TYPE_CHECKING, Any

from .catalog import WeightsRecord
from .config import HarDNetConfig
from .errors import ImageError, WeightsError
from .factory import (
    create_model,
    get_weights,
    hardnet39ds,
    hardnet68,
    hardnet68ds,
    hardnet85,
    list_models,
    list_weights,
)
from .features import HarDNetFeatures
from .layers import HarDBlock
from .model import HarDNet

if TYPE_CHECKING:
    from .classify import Classifier, ImageResult, Prediction

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "HarDBlock",
    "HarDNet",
    "HarDNetConfig",
    "HarDNetFeatures",
    "ImageError",
    "ImageResult",
    "Prediction",
    "WeightsError",
    "WeightsRecord",
    "create_model",
    "get_weights",
    "hardnet39ds",
    "hardnet68",
    "hardnet68ds",
    "hardnet85",
    "list_models",
    "list_weights",
]

_NEED_PILLOW_AND_TORCHVISION = ("Classifier", "ImageResult", "Prediction")


def __getattr__(name: str) -> Any:
    """Import what needs torchvision and pillow on first use: the models need neither."""
    if name in _NEED_PILLOW_AND_TORCHVISION:
        from . import classify

        return getattr(classify, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
