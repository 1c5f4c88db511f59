"""What this library raises beside Python's own ``ValueError`` and ``TypeError``."""


class WeightsError(RuntimeError):
    """Weights could not be had, are not what they claim to be, or do not fit the model."""


class ImageError(ValueError):
    """An image could not be read; the message names it and says why."""


class ExportError(RuntimeError):
    """An exported file does not compute what its model computes, and was not kept."""
