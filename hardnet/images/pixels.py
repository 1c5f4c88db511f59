"""From every kind of picture that Pillow knows to an opaque RGB one.

- Alpha, transparent palette entries and a transparent colour are composited on white.
- Grey, one-bit, CMYK, YCbCr, HSV and LAB pictures are converted as Pillow does. Embedded colour profiles are ignored,
  as is usual in the field: classifiers are trained on such numbers.
- 16-bit grey is divided by 257 and rounded; Pillow alone would clip it. Mode ``I`` counts as 16-bit, since 16-bit
  files arrive in it too; values beyond 65,535 are refused. Of 16-bit colour, Pillow keeps the upper 8 bits.
- Floating-point grey (mode ``F``) is taken as 0 to 1 where no value exceeds 1, else as 0 to 255; a picture with values
  outside of these, or that are not finite, is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..utils.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as a new, opaque RGB image of the same size, without metadata.

    The rules are in the module's description. The EXIF orientation is not looked at; that is
    :func:`hardnet.images.upright_rgb`.

    Raises:
        ImageError: the image has no pixels, or values of mode ``I`` or ``F`` are in a range without a meaning.
    """
    from PIL import Image

    if 0 in image.size:
        raise ImageError(f"the image has no pixels: its size is {image.width} x {image.height}")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bit(image)
    elif image.mode == "F":
        image = _from_float(image)
    elif image.mode == "La":
        image = image.convert("LA")  # Pillow has no other way out of premultiplied grey
    if _is_transparent(image):
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    rgb = image.convert("RGB")
    rgb.info = {}  # what it said of transparency has been dealt with
    return rgb


def _is_transparent(image: Image.Image) -> bool:
    try:
        return image.has_transparency_data
    except AssertionError:  # Pillow opens an ICNS file of palette colours without its palette object
        return "transparency" in image.info


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"the grey values run from {low} to {high}, beyond 16 bits, and there is no agreed scale for these: "
            "convert the image to 8 bits first"
        )
    grey = (values + 128) // 257  # to the nearest: 257 * 255 = 65535
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255  # the one transparent value, on white
    return _grey_image(grey, image.size)


def _from_float(image: Image.Image) -> Image.Image:
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.float32)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 255:  # not a number fails too
        raise ImageError(
            f"the floating-point grey values run from {low:g} to {high:g}, expected 0 to 1 or 0 to 255: "
            "scale them first"
        )
    return _grey_image((values * 255 if high <= 1 else values).round(), image.size)


def _grey_image(values: Tensor, size: tuple[int, int]) -> Image.Image:
    """(H * W,) values from 0 to 255 -> an 8-bit grey image."""
    from PIL import Image

    pixels = bytearray(values.numel())
    torch.frombuffer(pixels, dtype=torch.uint8).copy_(values)
    return Image.frombytes("L", size, bytes(pixels))
