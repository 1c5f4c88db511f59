"""Training and evaluation, on one process or on the ranks of torchrun. Needs torchvision and pillow."""

from ..utils.errors import DataError, TrainingError
from .evaluation import Evaluation, evaluate
from .loop import Outcome, train
from .options import TrainOptions

__all__ = ["DataError", "Evaluation", "Outcome", "TrainOptions", "TrainingError", "evaluate", "train"]
