"""Fast inference: run a model in another engine or in int8; export it to a file for other programs."""

from .acceleration import ENGINES, PRECISIONS, EngineCache, accelerate, available_engines, choose_engine
from .base import Accelerated
from .exporting import FORMATS, export
from .folding import fold

__all__ = [
    "ENGINES",
    "FORMATS",
    "PRECISIONS",
    "Accelerated",
    "EngineCache",
    "accelerate",
    "available_engines",
    "choose_engine",
    "export",
    "fold",
]
