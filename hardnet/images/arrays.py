"""Images that are given as tensors or NumPy arrays: check them, turn raw values into Pillow images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..utils.errors import ImageError
from .read import upright_rgb

if TYPE_CHECKING:
    from PIL import Image


def single_tensors(tensor: Tensor) -> Iterable[Tensor | ImageError]:
    """(3, H, W) or (N, 3, H, W) -> its images, or why there are none."""
    if tensor.dim() == 3:
        return [tensor]
    if tensor.dim() == 4:
        return tensor.unbind()
    return [ImageError(f"an image tensor has the shape (3, H, W) or (N, 3, H, W), got {describe(tensor)}")]


def from_array(array: Any, name: str) -> Image.Image:
    """uint8 values (H, W), (H, W, 3) or (H, W, 4) -> RGB image.

    Raises:
        ImageError: another type or shape.
    """
    from PIL import Image

    shape = tuple(array.shape)
    if str(array.dtype) != "uint8" or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))):
        raise ImageError(
            f"{name}: an array of an image has the type uint8 and the shape (H, W, 3), (H, W, 4) or (H, W), got "
            f"{array.dtype} {shape}"
        )
    return upright_rgb(Image.fromarray(array), name)


def from_raw(tensor: Tensor, name: str) -> Image.Image:
    """uint8 RGB values (3, H, W) -> RGB image.

    Raises:
        ImageError: another type or shape.
    """
    from PIL import Image

    if tensor.dtype != torch.uint8:
        raise ImageError(
            f"{name}: an image tensor holds raw values in uint8 or prepared ones in floating point, got {tensor.dtype}"
        )
    _check_shape(tensor, name, 3, 1)
    return Image.fromarray(tensor.cpu().permute(1, 2, 0).numpy())


def checked_input(tensor: Tensor, name: str, in_chans: int, min_size: int) -> Tensor:
    """Return prepared model input (in_chans, H, W); raise ImageError if the shape or a value does not fit."""
    _check_shape(tensor, name, in_chans, min_size)
    if not bool(tensor.isfinite().all()):
        raise ImageError(f"{name}: the tensor has values that are infinite or not a number")
    return tensor


def _check_shape(tensor: Tensor, name: str, channels: int, min_size: int) -> None:
    if tensor.shape[0] == channels and min(tensor.shape[1:]) >= min_size:
        return
    last = tensor.shape[-1] == channels != tensor.shape[0]
    advice = ": the channels are last, move them to the front with permute" if last else ""
    raise ImageError(
        f"{name}: the tensor must have the shape ({channels}, H, W) with H and W of at least {min_size}, got "
        f"{describe(tensor)}{advice}"
    )


def describe(value: object) -> str:
    """Return the type and shape of a tensor, or the type of anything else, for a message."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
