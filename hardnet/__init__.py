"""HarDNet (Harmonic DenseNet) image classifiers for PyTorch.

>>> import hardnet
>>> model = hardnet.create_model("hardnet39ds", num_classes=10)
"""

from typing import TYPE_CHECKING, Any

from .catalog import WeightsRecord
from .config import HarDNetConfig
from .errors import ExportError, ImageError, WeightsError
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
    from .deploy import Accelerated, accelerate, export

__version__ = "0.1.0"

__all__ = [
    "Accelerated",
    "Classifier",
    "ExportError",
    "HarDBlock",
    "HarDNet",
    "HarDNetConfig",
    "HarDNetFeatures",
    "ImageError",
    "ImageResult",
    "Prediction",
    "WeightsError",
    "WeightsRecord",
    "accelerate",
    "create_model",
    "export",
    "get_weights",
    "hardnet39ds",
    "hardnet68",
    "hardnet68ds",
    "hardnet85",
    "list_models",
    "list_weights",
]

_ON_FIRST_USE = {
    **dict.fromkeys(("Classifier", "ImageResult", "Prediction"), "classify"),  # need torchvision and pillow
    **dict.fromkeys(("Accelerated", "accelerate", "export"), "deploy"),
}


def __getattr__(name: str) -> Any:
    """Import on first use what the models do not need."""
    if name in _ON_FIRST_USE:
        import importlib

        return getattr(importlib.import_module(f".{_ON_FIRST_USE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
