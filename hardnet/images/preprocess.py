"""Preprocess a Pillow image for a model: resize, centre crop, normalise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .read import Box, to_rgb

if TYPE_CHECKING:
    from PIL import Image

_MAX_SIDE = 16_384
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")
"""Names of the filters for resizing."""
MAX_ASPECT_RATIO = 32
"""Long side over short side, up to which the whole picture is resized before it is cropped."""


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing under which a model is evaluated: Pillow image -> float32 tensor (3, crop, crop).

    The shorter side is resized (antialiased), the centre cropped, the values scaled to [0, 1] and
    normalised: the operations of torchvision's ``Resize``, ``CenterCrop``, ``ToTensor`` and ``Normalize``, to the
    last bit. Pictures of other modes than RGB are converted by the rules of :mod:`hardnet.images.read`. The EXIF
    orientation is not applied; :func:`hardnet.images.load_image` does this.

    A picture more than 32 times as long as wide is cropped first; see
    :func:`hardnet.images.preprocess.limit_aspect_ratio`.

    Raises:
        ValueError: sizes that are neither integers with 1 <= crop <= resize <= 16384 nor both 0, or statistics that are
            not three finite numbers, positive ones for ``std``.
        TypeError: on a call with anything but a Pillow image.
        ImageError: on a call with a picture without pixels, or with values out of range.
    """

    resize: int = 256
    """The shorter side, before the crop; 0, with ``crop`` 0, keeps the whole picture at its size."""
    crop: int = 224
    """Height and width of the result."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of each channel in [0, 1]; subtracted."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel; what the difference is divided by."""
    interpolation: str = "bilinear"
    """Filter of the resizing: one of ``INTERPOLATIONS``, antialiased."""
    channels: str = "RGB"
    """Order of the channels, also of ``mean`` and ``std``: "RGB" or "BGR"."""

    def __post_init__(self) -> None:
        sides = (self.crop, self.resize)
        possible = 1 <= self.crop <= self.resize <= _MAX_SIDE or sides == (0, 0)
        if {type(side) for side in sides} != {int} or not possible:
            limits = f"1 <= crop <= resize <= {_MAX_SIDE} pixels"
            raise ValueError(f"{limits} is required, got {sides}; 0 and 0 keep the whole picture")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
                raise ValueError(f"{name} must be three finite numbers, got {values!r}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std!r}")
        if self.channels not in ("RGB", "BGR"):
            raise ValueError(f"channels must be RGB or BGR, got {self.channels!r:.100}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {INTERPOLATIONS}, got {self.interpolation!r:.100}")

    @classmethod
    def from_dict(cls, values: Any) -> Preprocessing:
        """Return the preprocessing that checkpoints and ``config.json`` describe.

        Raises:
            ValueError: an entry is missing or out of its range.
        """
        try:
            numbers = values["resize"], values["crop"], tuple(values["mean"]), tuple(values["std"])
            return cls(*numbers, values.get("interpolation", "bilinear"), values.get("channels", "RGB"))
        except (LookupError, TypeError, ArithmeticError, AttributeError, ValueError) as error:
            raise ValueError(f'"preprocessing" is not valid: {error!r:.200}') from error

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as checkpoints and ``config.json`` hold them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def __call__(self, image: Image.Image) -> Tensor:
        """Pillow image -> float32 tensor (3, crop, crop), or (3, H, W) of the whole picture."""
        return self.normalise(self.pixels(image))

    def pixels(self, image: Image.Image, *, fast: bool = False, box: Box | None = None) -> Tensor:
        """Resize and crop: Pillow image -> uint8 tensor (3, crop, crop), or (3, H, W) of the whole picture.

        Args:
            image: any Pillow image.
            fast: resize only what the crop shows. Some values differ by 1.
            box: with ``fast``, the part of the image that is the picture, from ``hardnet.images.read.decode_image``.
        """
        from PIL import Image

        if not isinstance(image, Image.Image):
            raise TypeError(f"the transform takes a Pillow image (see load_image), got {type(image).__name__}")
        if image.mode != "RGB" or "transparency" in image.info or 0 in image.size:
            image = to_rgb(image)
        if self.crop and fast:
            left, top, right, bottom = box or (0, 0, *image.size)
            edges = self.crop_box(right - left, bottom - top)
            box = (left + edges[0], top + edges[1], min(left + edges[2], right), min(top + edges[3], bottom))
            image = image.resize((self.crop, self.crop), Image.Resampling[self.interpolation.upper()], box)
        elif self.crop:
            image = limit_aspect_ratio(image)
            width, height = (self.resize * side // min(image.size) for side in image.size)
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
            image = _crop_centre(image, self.crop, self.crop)
        # Not permuted by torch, whose threads would get in the way of those that decode.
        values = bytearray().join(image.getchannel(name).tobytes() for name in self.channels)
        return torch.frombuffer(values, dtype=torch.uint8).view(3, image.height, image.width)

    def crop_box(self, width: float, height: float) -> Box:
        """Return the part of a picture that is used, in pixels of the picture: left, top, right, bottom."""
        if not self.crop:
            return 0, 0, width, height

        def span(side: float) -> tuple[float, float]:
            part = min(side, MAX_ASPECT_RATIO * min(width, height))  # what is resized
            resized = self.resize * part // min(width, height)
            start, first = round((side - part) / 2), round((resized - self.crop) / 2)
            return start + first * part / resized, start + (first + self.crop) * part / resized

        (left, right), (top, bottom) = span(width), span(height)
        return left, top, right, bottom

    def normalise(self, pixels: Tensor) -> Tensor:
        """Scale to [0, 1] and normalise: uint8 (3, H, W) or (N, 3, H, W) -> float32 of the same shape."""
        mean, std = (torch.tensor(row, device=pixels.device).view(3, 1, 1) for row in (self.mean, self.std))
        result = torch.empty_like(pixels, dtype=torch.float32)
        for image, values in zip(result.view(-1, *result.shape[-3:]), pixels.view(-1, *pixels.shape[-3:]), strict=True):
            image.copy_(values).div_(255).sub_(mean).div_(std)  # one image stays in the cache
        return result


def limit_aspect_ratio(image: Image.Image) -> Image.Image:
    """Return the centre of an image of more than 1 : 32, cropped to this ratio; any other image unchanged.

    Resized whole, 1 x 10,000 pixels would become 256 x 2,560,000.
    """
    longest = MAX_ASPECT_RATIO * min(image.size)
    if max(image.size) <= longest:
        return image
    return _crop_centre(image, min(longest, image.width), min(longest, image.height))


def _crop_centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
