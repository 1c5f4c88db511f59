"""Fast inference: a model in another engine, in int8, and as a file for other programs."""

from .accelerate import ENGINES, PRECISIONS, accelerate, available_engines
from .base import Accelerated
from .export import export
from .folding import fold
from .formats import FORMATS

__all__ = ["ENGINES", "FORMATS", "PRECISIONS", "Accelerated", "accelerate", "available_engines", "export", "fold"]
