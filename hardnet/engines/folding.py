"""Fold batch normalisation into the convolutions."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..models.layers import ConvLayer, DWConvLayer

Model = TypeVar("Model", bound=nn.Module)


def fold(model: Model) -> Model:
    """Return a copy of a model, in evaluation mode, with batch normalisation folded into the convolutions.

    The copy computes the same up to rounding. It cannot be trained, and its state dict has other keys.

    Args:
        model: a classifier or feature pyramid of this library; it is not changed.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for layer in list(folded.modules()):
        if isinstance(layer, (ConvLayer, DWConvLayer)):
            name = convolution_name(layer)
            conv, norm = cast(nn.Conv2d, getattr(layer, name)), cast(nn.BatchNorm2d, layer.norm)
            setattr(layer, name, fuse_conv_bn_eval(conv, norm))
            del layer.norm
    return folded


def convolution_name(layer: ConvLayer | DWConvLayer) -> str:
    """Return the name of the attribute that holds a layer's convolution."""
    return "conv" if isinstance(layer, ConvLayer) else "dwconv"
