"""What training and evaluation raise beside ``ValueError`` and the package's own errors."""


class DataError(ValueError):
    """A data set is missing or malformed; the message names the file or folder and what was expected there."""


class TrainingError(RuntimeError):
    """A run cannot go on: the loss is not a number, a checkpoint could not be written, or does not fit."""
