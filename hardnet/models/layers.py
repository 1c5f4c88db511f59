"""The layers and the HarDBlock, following the paper (https://arxiv.org/abs/1909.00948).

Module names are those of the authors' released code, so that its checkpoints load strictly.
"""

# Annotations must not be strings here and in the network: torch.jit.script cannot read them in a graph of torch.fx.

import torch
from torch import Tensor, nn

from .checkpointing import run_checkpointed
from .config import Activation, harmonic_links, kept_layers, layer_width


def _convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, dilation: int, groups: int = 1
) -> nn.Conv2d:
    """Build a convolution without bias, its weights drawn as the released code does: Xavier (Glorot) normal.

    It is built on the meta device, because initialising each weight twice would take most of the time of building a
    model.
    """
    shape = (in_channels, out_channels, kernel_size, stride, kernel_size // 2 * dilation, dilation, groups)
    conv = nn.Conv2d(*shape, bias=False, device="meta")
    conv.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(conv.weight.shape)))
    return conv


class ConvLayer(nn.Sequential):
    """Convolution without bias, batch normalisation, activation: (N, C, H, W) -> (N, out, H/stride, W/stride)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1,
        activation: Activation = "relu6", dilation: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.add_module("conv", _convolution(in_channels, out_channels, kernel_size, stride, dilation))
        self.add_module("norm", nn.BatchNorm2d(out_channels))
        self.add_module("relu", nn.ReLU6(inplace=True) if activation == "relu6" else nn.ReLU(inplace=True))


class DWConvLayer(nn.Sequential):
    """Depthwise 3x3 convolution and batch normalisation, no activation: (N, C, H, W) -> (N, C, H/stride, W/stride)."""

    def __init__(self, channels: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.add_module("dwconv", _convolution(channels, channels, 3, stride, dilation, groups=channels))
        self.add_module("norm", nn.BatchNorm2d(channels))


class CombConvLayer(nn.Sequential):
    """A 1x1 ConvLayer followed by a DWConvLayer: the depthwise-separable layer of the DS variants."""

    def __init__(
        self, in_channels: int, out_channels: int, activation: Activation = "relu6", dilation: int = 1
    ) -> None:
        super().__init__()
        self.add_module("layer1", ConvLayer(in_channels, out_channels, kernel_size=1, activation=activation))
        self.add_module("layer2", DWConvLayer(out_channels, dilation=dilation))


def dense_max_pool(dilation: int) -> nn.Sequential:
    """Max pooling over 2x2 pixels without the stride: (N, C, H, W) -> (N, C, H, W).

    Every second row and column of the result, for ``dilation`` 1, is what ``MaxPool2d(2, stride=2)`` gives.
    """
    padding = nn.ConstantPad2d((0, dilation, 0, dilation), float("-inf"))
    return nn.Sequential(padding, nn.MaxPool2d(2, stride=1, dilation=dilation))


class HarDBlock(nn.Module):
    """Harmonic dense block: (N, in_channels, H, W) -> (N, out_channels, H, W).

    Layer n reads the layers n - 2**i for every 2**i that divides n; the block's output concatenates its odd
    layers and the last one. See :mod:`hardnet.models.config` for the rule.

    Args:
        in_channels: channels of the input.
        growth_rate: k, the output channels of a layer with a single link.
        growth_multiplier: m, by which a layer grows for every link beyond the first.
        n_layers: number of layers.
        depthwise: depthwise-separable layers in place of 3x3 convolutions.
        activation: activation behind each layer's convolution.
        dilation: dilation of the 3x3 convolutions.

    Source: Chao et al., 2019, section 3.1, and the authors' released code, which the widths and the output follow.
    """

    def __init__(
        self, in_channels: int, growth_rate: int, growth_multiplier: float, n_layers: int, depthwise: bool = False,
        activation: Activation = "relu6", dilation: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        numbers = range(1, n_layers + 1)
        widths = [in_channels, *(layer_width(n, growth_rate, growth_multiplier) for n in numbers)]
        self.in_channels = in_channels
        self.growth_rate = growth_rate
        self.growth_multiplier = self.grmul = growth_multiplier  # grmul: the released code's name
        self.n_layers = n_layers
        # Lists of lists, not tuples: TorchScript takes only these as constants of a module.
        self.links = [list(harmonic_links(n)) for n in numbers]
        self.kept = list(kept_layers(n_layers))
        self.out_channels = sum(widths[n] for n in self.kept)
        self.checkpointing = False
        """True if the backward pass recomputes the activations within the block instead of storing them."""
        self.layers = nn.ModuleList()
        for n in numbers:
            linked = sum(widths[i] for i in self.links[n - 1])
            kind = CombConvLayer if depthwise else ConvLayer
            self.layers.append(kind(linked, widths[n], activation=activation, dilation=dilation))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        if not torch.jit.is_scripting() and self.checkpointing and torch.is_grad_enabled():
            return run_checkpointed(self, self._run, x)
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        outputs = [x]
        for index, layer in enumerate(self.layers):
            inputs = [outputs[link] for link in self.links[index]]
            outputs.append(layer(inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)))
        return torch.cat([outputs[n] for n in self.kept], 1)
