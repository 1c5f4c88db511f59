"""Images: reading files, preprocessing, batches."""

from .read import list_images, load_image

__all__ = ["list_images", "load_image"]
