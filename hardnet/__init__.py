"""HarDNet (Harmonic DenseNet) image classifiers for PyTorch.

>>> import hardnet
>>> model = hardnet.create_model("hardnet39ds", num_classes=10)
"""

from typing import TYPE_CHECKING, Any

from .utils.version import __version__ as __version__

if TYPE_CHECKING:
    from .engines import Accelerated, accelerate, export
    from .factory import create_model, from_pretrained, hardnet39ds, hardnet68, hardnet68ds, hardnet85
    from .images import load_image
    from .inference.classifier import Classifier, Extractor
    from .inference.results import Embedding, ImageResult, Prediction
    from .models.config import HarDNetConfig
    from .models.features import HarDNetFeatures
    from .models.layers import HarDBlock
    from .models.network import HarDNet
    from .utils.errors import ExportError, ImageError, WeightsError
    from .weights.catalog import WeightsRecord, get_weights, list_models, list_weights

# fmt: off
__all__ = [
    "Accelerated", "Classifier", "Embedding", "ExportError", "Extractor", "HarDBlock", "HarDNet", "HarDNetConfig",
    "HarDNetFeatures", "ImageError", "ImageResult", "Prediction", "WeightsError", "WeightsRecord", "accelerate",
    "create_model", "export", "from_pretrained", "get_weights", "hardnet39ds", "hardnet68", "hardnet68ds", "hardnet85",
    "list_models", "list_weights", "load_image",
]
# fmt: on

# Imported on first use: `import hardnet` does not import torch, and Classifier alone imports pillow.
_MODULES = {
    "engines": "Accelerated accelerate export",
    "images": "load_image",
    "inference.classifier": "Classifier Extractor",
    "models.config": "HarDNetConfig",
    "models.features": "HarDNetFeatures",
    "models.layers": "HarDBlock",
    "inference.results": "Embedding ImageResult Prediction",
    "utils.errors": "ExportError ImageError WeightsError",
    "weights.catalog": "WeightsRecord get_weights list_models list_weights",
}
_ORIGIN = dict.fromkeys(__all__, "factory")  # its HarDNet has the methods that hardnet.weights.folder sets
_ORIGIN |= {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name or a folder of the package on first use."""
    import importlib

    if name in _ORIGIN:
        globals()[name] = value = getattr(importlib.import_module(f".{_ORIGIN[name]}", __name__), name)
        return value
    if name in (
        "engines",
        "explain",
        "factory",
        "images",
        "inference",
        "models",
        "ray",
        "training",
        "utils",
        "weights",
    ):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
