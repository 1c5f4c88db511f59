"""Training and evaluation, on one process or on the ranks of torchrun. Needs torchvision and pillow."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..utils.errors import DataError, TrainingError
from .options import TrainOptions

if TYPE_CHECKING:
    from .evaluation import Evaluation, evaluate
    from .loop import Outcome, train

__all__ = ["DataError", "Evaluation", "Outcome", "TrainOptions", "TrainingError", "evaluate", "train"]

_LATE = {"Evaluation": "evaluation", "Outcome": "loop", "evaluate": "evaluation", "train": "loop"}


def __getattr__(name: str) -> Any:
    """Import what needs torch.distributed on first use: the command line needs only the options at first."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LATE[name]}", __name__), name)
