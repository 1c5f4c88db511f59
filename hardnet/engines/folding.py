"""Batch normalisation folded into the convolutions: the same function, with fewer passes over memory."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..models.layers import ConvLayer, DWConvLayer

Model = TypeVar("Model", bound=nn.Module)


def fold(model: Model) -> Model:
    """Return a copy of a model, in evaluation mode, whose convolutions have taken in their batch normalisation.

    Args:
        model: one of ours, classifier or feature pyramid; it is not changed.

    The copy computes the same up to rounding. It cannot be trained, and its state dict is another one.
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
    """Return under which name a layer keeps its convolution."""
    return "conv" if isinstance(layer, ConvLayer) else "dwconv"
