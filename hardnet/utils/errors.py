"""The exceptions of the library, in addition to ``ValueError`` and ``TypeError``."""

from typing import Literal


class WeightsError(RuntimeError):
    """Weights could not be loaded: no source has them, they fail a check, or they do not fit the model."""

    cause: Literal["network", "host", "damaged"] | None = None
    """Cause of a failed download: no network, no answer from the host, a damaged file; None for anything else."""


class ImageError(ValueError):
    """An image could not be read; the message names it and says why."""


class ExportError(RuntimeError):
    """An exported file gave other results than its model and was deleted."""


class DataError(ValueError):
    """A data set is missing or malformed; the message names the file or folder and what was expected there."""


class TrainingError(RuntimeError):
    """A training run cannot go on: loss not finite, or a checkpoint that cannot be written or does not fit."""


class OutputError(RuntimeError):
    """The output cannot be written."""
