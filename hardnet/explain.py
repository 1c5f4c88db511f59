"""Where a class is seen: Grad-CAM over a picture, and the picture as the network saw it.

Grad-CAM (Selvaraju et al., 2017, https://arxiv.org/abs/1610.02391) is computed by captum:
``pip install "hardnet[demo]"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from .images.preprocess import Preprocessing
from .models.config import FeatureLevel, feature_levels
from .models.network import HarDNet

if TYPE_CHECKING:
    from PIL import Image

MIN_MAP = 4
"""Pixels a side: coarser feature maps say next to nothing about where."""


def activation_level(model: HarDNet, height: int, width: int) -> FeatureLevel:
    """Return the deepest level of the pyramid whose map of such an image (pixels) has at least 4 pixels a side.

    The last one for ImageNet's crop of 224, stride 16 for a crop of 64.
    """
    levels = feature_levels(model.config)
    large = [level for level in levels if min(height, width) // level.stride >= MIN_MAP]
    return large[-1] if large else levels[0]


def class_activation(model: HarDNet, image: Tensor, index: int) -> Tensor:
    """Grad-CAM of one class: (in_chans, H, W), prepared for the model -> (H, W) from 0 to 1, on the CPU.

    1 is where the class was seen most; all is 0 where nothing speaks for it. The model must be in evaluation mode; its
    parameters and their gradients are left as they are.

    Raises:
        ImportError: captum is not installed.
        ValueError: there is no such class, or the image does not fit the model.
    """
    try:
        from captum.attr import LayerGradCam  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        raise ImportError('class activation maps need captum: pip install "hardnet[demo]"') from None
    if not 0 <= index < model.num_classes:
        raise ValueError(f"class must lie between 0 and {model.num_classes - 1}, got {index}")
    weight = next(model.parameters())
    batch = image[None].to(weight.device, weight.dtype)
    level = activation_level(model, *image.shape[1:])
    with torch.enable_grad():
        # The gradient's way to the layer must be there for a frozen model, too: it starts at the input.
        coarse = LayerGradCam(model, model.base[level.module_index]).attribute(
            batch.clone().requires_grad_(), target=index, relu_attributions=True
        )
    fine = functional.interpolate(coarse.detach().float(), size=image.shape[1:], mode="bilinear", align_corners=False)
    activation = fine[0, 0].cpu()
    return activation / activation.max().clamp_min(torch.finfo(torch.float32).tiny)


def seen_picture(image: Tensor, preprocessing: Preprocessing) -> Image.Image:
    """Undo the normalisation: what a prepared tensor (3, H, W) shows, as an RGB picture."""
    from torchvision.transforms.functional import to_pil_image  # type: ignore[import-untyped]

    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    picture: Image.Image = to_pil_image((image.cpu().float() * std + mean).clamp(0, 1).mul(255).round().byte())
    return picture


def overlay(picture: Image.Image, activation: Tensor, opacity: float = 0.5) -> Image.Image:
    """Lay an activation (H, W) from 0 to 1 over an RGB picture of that size, from blue (0) to red (1).

    Raises:
        ImportError: matplotlib, which has the colours, is not installed.
    """
    try:
        from matplotlib import colormaps  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise ImportError('the colours of the overlay need matplotlib: pip install "hardnet[demo]"') from None
    from PIL import Image

    heat = Image.fromarray(colormaps["turbo"](activation.numpy(), bytes=True)[..., :3])
    return Image.blend(picture, heat, opacity)
