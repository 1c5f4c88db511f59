"""HarDNet (Harmonic DenseNet) image classifiers for PyTorch.

>>> import hardnet
>>> model = hardnet.create_model("hardnet39ds", num_classes=10)
"""

from typing import TYPE_CHECKING, Any

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
from .models.config import HarDNetConfig
from .models.features import HarDNetFeatures
from .models.layers import HarDBlock
from .models.network import HarDNet
from .utils.errors import ExportError, ImageError, WeightsError
from .utils.version import __version__ as __version__
from .weights.catalog import WeightsRecord

if TYPE_CHECKING:
    from .engines import Accelerated, accelerate, export
    from .images import load_image
    from .inference import Classifier, Embedding, Extractor, ImageResult, Prediction

__all__ = [
    "Accelerated",
    "Classifier",
    "Embedding",
    "ExportError",
    "Extractor",
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
    "load_image",
]

_ON_FIRST_USE = {
    # These import torchvision and pillow.
    **dict.fromkeys(("Classifier", "Embedding", "Extractor", "ImageResult", "Prediction"), "inference"),
    "load_image": "images",
    **dict.fromkeys(("Accelerated", "accelerate", "export"), "engines"),
}


def __getattr__(name: str) -> Any:
    """Import on first use what the models do not need."""
    if name in _ON_FIRST_USE:
        import importlib

        return getattr(importlib.import_module(f".{_ON_FIRST_USE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
