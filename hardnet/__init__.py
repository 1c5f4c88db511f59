"""HarDNet (Harmonic DenseNet) image classifiers for PyTorch.

>>> import hardnet
>>> model = hardnet.create_model("hardnet39ds", num_classes=10)
"""

from .engines import Accelerated, accelerate, export
from .factory import create_model, fchardnet70, from_pretrained, hardnet39ds, hardnet68, hardnet68ds, hardnet85
from .images import load_image
from .inference.classifier import Classifier, Extractor
from .inference.gradcam import explain
from .inference.jobs import JobSummary, extract_to_file, predict_to_file
from .inference.results import Embedding, ImageResult, Prediction, Results
from .inference.segmenter import Segmentation, Segmenter
from .models.config import HarDNetConfig
from .models.features import HarDNetFeatures
from .models.layers import HarDBlock
from .models.network import HarDNet
from .models.segmentation import FCHarDNet
from .utils.errors import ExportError, ImageError, WeightsError
from .utils.version import __version__ as __version__
from .weights.catalog import WeightsRecord, get_weights, list_models, list_weights
from .weights.load import Loaded, load_weights

# fmt: off
__all__ = [
    "Accelerated", "Classifier", "Embedding", "ExportError", "Extractor", "FCHarDNet", "HarDBlock", "HarDNet",
    "HarDNetConfig", "HarDNetFeatures", "ImageError", "ImageResult", "JobSummary", "Loaded", "Prediction",
    "Results", "Segmentation", "Segmenter", "WeightsError", "WeightsRecord", "accelerate", "create_model",
    "explain", "export", "extract_to_file", "fchardnet70", "from_pretrained", "get_weights", "hardnet39ds",
    "hardnet68", "hardnet68ds", "hardnet85", "list_models", "list_weights", "load_image", "load_weights",
    "predict_to_file",
]
# fmt: on
