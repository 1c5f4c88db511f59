"""Fold batch normalisation into the convolutions; compute HarDBlocks without concatenations."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..models.layers import CombConvLayer, ConvLayer, DWConvLayer, HarDBlock

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


def merge(folded: nn.Module) -> nn.Module:
    """Replace, in place, the HarDBlocks of a folded model by :class:`MergedBlock`."""
    for parent in list(folded.modules()):
        for name, block in list(parent.named_children()):
            if isinstance(block, HarDBlock):
                setattr(parent, name, MergedBlock(block))
    return folded


class MergedBlock(nn.Module):
    """A folded HarDBlock as conv(cat(a, b)) = conv_a(a) + conv_b(b): (N, C, H, W) -> (N, out, H, W).

    One convolution per source computes the parts of all layers that read this source; each layer adds up its parts.
    Only the concatenation of the block's output remains.
    """

    def __init__(self, block: HarDBlock) -> None:
        super().__init__()
        layers = parts_of(block)
        self.kept, self.padding, self.dilation = block.kept, layers[0].padding, layers[0].dilation
        self.widths = [len(layer.bias) for layer in layers]
        self.after = nn.ModuleList(layer.after for layer in layers)
        self.readers = [
            [n for n, layer in enumerate(layers) if source in layer.weights] for source in range(len(layers))
        ]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for source, readers in enumerate(self.readers):
            weight = torch.cat([layers[n].weights[source] for n in readers])
            # The bias of a layer is added with its first part.
            bias = torch.cat([layers[n].bias * (source == min(layers[n].weights)) for n in readers])
            self.weights.append(nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False))
            self.biases.append(nn.Parameter(bias, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out, H, W)."""
        outputs, totals = [x], cast("list[Tensor]", [None] * len(self.readers))
        for source, (readers, weight, bias) in enumerate(zip(self.readers, self.weights, self.biases, strict=True)):
            found = functional.conv2d(outputs[source], weight, bias, padding=self.padding, dilation=self.dilation)
            for n, part in zip(readers, torch.split(found, [self.widths[n] for n in readers], 1), strict=True):
                totals[n] = part if totals[n] is None else totals[n] + part
            # The last source of a layer is the layer before it, so the sum of this layer is complete.
            outputs.append(self.after[source](totals[source]))
        return torch.cat([outputs[n] for n in self.kept], 1)


@dataclass
class LayerParts:
    """A layer of a folded block, its convolution split by source."""

    weights: dict[int, Tensor]
    """By the number of the source layer, 0 for the block's input: (out, C, k, k)."""
    bias: Tensor
    after: nn.Module
    """The activation, and the depthwise convolution if there is one."""
    padding: int
    dilation: int


def parts_of(block: HarDBlock) -> list[LayerParts]:
    """Split the convolutions of a folded block by source."""
    firsts = [cast(ConvLayer, layer.layer1 if isinstance(layer, CombConvLayer) else layer) for layer in block.layers]
    convs = [cast(nn.Conv2d, first.conv) for first in firsts]
    found = []
    for links, layer, first, conv in zip(block.links, block.layers, firsts, convs, strict=True):
        others = sum(convs[link - 1].out_channels for link in links if link)
        widths = [convs[link - 1].out_channels if link else conv.in_channels - others for link in links]
        weights = dict(zip(links, torch.split(conv.weight.detach(), widths, 1), strict=True))
        after: list[nn.Module] = [type(cast(nn.Module, first.relu))()]  # not in place: parts share memory
        if isinstance(layer, CombConvLayer):
            after.append(cast(nn.Module, layer.layer2))
        padding, dilation = cast("tuple[int, int]", conv.padding)[0], conv.dilation[0]
        bias = cast(Tensor, conv.bias).detach()
        found.append(LayerParts(weights, bias, nn.Sequential(*after), padding, dilation))
    return found
