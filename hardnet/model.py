"""The layers, the HarDBlock and the network, readable beside the paper (https://arxiv.org/abs/1909.00948).

Module names and the numbering of ``HarDNet.base`` are those of the authors' released code, so that its
checkpoints load strictly and code that takes ``model.base`` apart keeps working.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from .config import Activation, HarDNetConfig, harmonic_links, kept_layers, layer_width

if TYPE_CHECKING:
    from .catalog import WeightsRecord

MIN_INPUT_SIZE = 32
"""Pixels: the stride of the deepest feature map, below which it would vanish."""

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu6": nn.ReLU6, "relu": nn.ReLU}


class ConvLayer(nn.Sequential):
    """Convolution without bias, batch normalisation, activation: (N, C, H, W) -> (N, out, H/stride, W/stride)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        activation: Activation = "relu6",
    ) -> None:
        super().__init__()
        self.add_module(
            "conv",
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
        )
        self.add_module("norm", nn.BatchNorm2d(out_channels))
        self.add_module("relu", _ACTIVATIONS[activation](inplace=True))


class DWConvLayer(nn.Sequential):
    """Depthwise 3x3 convolution and batch normalisation, no activation: (N, C, H, W) -> (N, C, H/stride, W/stride)."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.add_module("dwconv", nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False))
        self.add_module("norm", nn.BatchNorm2d(channels))


class CombConvLayer(nn.Sequential):
    """A 1x1 ConvLayer followed by a DWConvLayer: the depthwise-separable layer of the DS variants."""

    def __init__(self, in_channels: int, out_channels: int, activation: Activation = "relu6") -> None:
        super().__init__()
        self.add_module("layer1", ConvLayer(in_channels, out_channels, kernel_size=1, activation=activation))
        self.add_module("layer2", DWConvLayer(out_channels))


class HarDBlock(nn.Module):
    """Harmonic dense block: (N, in_channels, H, W) -> (N, out_channels, H, W).

    Layer n reads the layers n - 2**i for every 2**i that divides n; the block's output concatenates its odd
    layers and the last one. See :mod:`hardnet.config` for the rule.
    """

    def __init__(
        self,
        in_channels: int,
        growth_rate: int,
        growth_multiplier: float,
        n_layers: int,
        depthwise: bool = False,
        activation: Activation = "relu6",
    ) -> None:
        super().__init__()
        numbers = range(1, n_layers + 1)
        widths = [in_channels, *(layer_width(n, growth_rate, growth_multiplier) for n in numbers)]
        # Lists of lists, not tuples: TorchScript takes only these as constants of a module.
        self.links = [list(harmonic_links(n)) for n in numbers]
        self.kept = list(kept_layers(n_layers))
        self.out_channels = sum(widths[n] for n in self.kept)
        self.layers = nn.ModuleList()
        for n in numbers:
            linked = sum(widths[i] for i in self.links[n - 1])
            if depthwise:
                self.layers.append(CombConvLayer(linked, widths[n], activation))
            else:
                self.layers.append(ConvLayer(linked, widths[n], activation=activation))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        outputs = [x]
        for index, layer in enumerate(self.layers):
            inputs = [outputs[link] for link in self.links[index]]
            outputs.append(layer(inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)))
        return torch.cat([outputs[n] for n in self.kept], 1)


class HarDNet(nn.Module):
    """Image classifier: (N, in_chans, H, W) -> (N, num_classes) logits, for any H and W from 32 pixels up.

    Args:
        config: the variant, a row of ``hardnet.config.CONFIGS`` or one of your own.
        num_classes: width of the logits.
        in_chans: channels of the input image.
        drop_rate: probability of dropout before the linear layer; None takes the variant's own.

    ``base`` is an ``nn.Sequential`` of stem, blocks, transitions and head; its last entry is the head.

    Convolutions are initialised from a Xavier (Glorot) normal distribution, every bias with zero, and batch
    normalisation as the identity: the scheme of the released code.

    Raises:
        ValueError: an argument is out of its range; in ``forward``, an input that is not four-dimensional,
            has other channels than ``in_chans``, is smaller than 32 pixels or is not floating point.
    """

    def __init__(
        self,
        config: HarDNetConfig,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float | None = None,
    ) -> None:
        super().__init__()
        for what, value in (("num_classes", num_classes), ("in_chans", in_chans)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{what} must be a whole number from 1 up, got {value!r}")
        if drop_rate is None:
            drop_rate = config.drop_rate
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate must lie in [0, 1), got {drop_rate!r}")
        self.config = config
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = config.transition_channels[-1]
        self.weights_record: WeightsRecord | None = None
        """The catalogue's record of the weights that were loaded, where they came from it."""
        self.base = nn.Sequential(
            *_stem(config, in_chans), *_stages(config), _head(self.num_features, num_classes, drop_rate)
        )
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_classes) logits."""
        if not torch.jit.is_scripting():
            self._check_input(x)
        logits: Tensor = self.base(x)
        return logits

    @torch.jit.unused
    def _check_input(self, x: Tensor) -> None:
        if isinstance(x, fx.Proxy) or torch.jit.is_tracing():  # type: ignore[no-untyped-call]  # torch has no types for it
            return  # there is no shape to look at, or looking at it would leave a mark in the graph
        if x.dim() != 4 or x.shape[1] != self.in_chans or min(x.shape[2:]) < MIN_INPUT_SIZE:
            raise ValueError(
                f"{self.config.name} takes images of shape (N, {self.in_chans}, H, W) with H and W of at least "
                f"{MIN_INPUT_SIZE} pixels, got {_describe_shape(x)}{self._advice(x)}"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"{self.config.name} takes floating-point images, got {x.dtype}: scale them to [0, 1] and "
                "normalise them first"
            )

    def _advice(self, x: Tensor) -> str:
        if x.dim() == 3 and x.shape[0] == self.in_chans:
            return ": add the batch dimension with x.unsqueeze(0)"
        if x.dim() == 4 and x.shape[-1] == self.in_chans != x.shape[1]:
            return ": the channels are last, move them with x.permute(0, 3, 1, 2)"
        return ""

    def extra_repr(self) -> str:
        """The line that ``print(model)`` shows of the model itself."""
        return f"name={self.config.name}, num_classes={self.num_classes}, in_chans={self.in_chans}"


def _describe_shape(x: Tensor) -> str:
    return "(" + ", ".join(str(size) for size in x.shape) + ("," if x.dim() == 1 else "") + ")"


def _stem(config: HarDNetConfig, in_chans: int) -> list[nn.Module]:
    """base[0:3]: (N, in_chans, H, W) -> (N, stem_channels[1], H/4, W/4)."""
    first, second = config.stem_channels
    return [
        ConvLayer(in_chans, first, kernel_size=3, stride=2),
        ConvLayer(first, second, kernel_size=1 if config.depthwise else 3),
        DWConvLayer(second, stride=2) if config.depthwise else nn.MaxPool2d(3, stride=2, padding=1),
    ]


def _stages(config: HarDNetConfig) -> list[nn.Module]:
    """base[3:-1]: for each row of the config a block, its 1x1 transition and, where asked, a downsampling."""
    modules: list[nn.Module] = []
    channels = config.stem_channels[1]
    last = len(config.block_layers) - 1
    rows = zip(config.block_layers, config.growth_rates, config.transition_channels, config.downsample, strict=True)
    for index, (n_layers, growth_rate, out_channels, downsample) in enumerate(rows):
        block = HarDBlock(
            channels,
            growth_rate,
            config.growth_multiplier,
            n_layers,
            config.depthwise,
            config.block_activation,
        )
        modules.append(block)
        if index == last and config.last_block_drop_rate is not None:
            modules.append(nn.Dropout(config.last_block_drop_rate))
        modules.append(ConvLayer(block.out_channels, out_channels, kernel_size=1))
        if downsample:
            modules.append(DWConvLayer(out_channels, stride=2) if config.depthwise else nn.MaxPool2d(2, stride=2))
        channels = out_channels
    return modules


def _head(channels: int, num_classes: int, drop_rate: float) -> nn.Sequential:
    """base[-1]: (N, channels, H/32, W/32) -> (N, num_classes)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(drop_rate), nn.Linear(channels, num_classes))
