"""Images: reading files, preprocessing, batches."""

from .read import load_image

__all__ = ["load_image"]
