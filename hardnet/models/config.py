"""The architectures as rows of numbers, and the harmonic rule as pure integer functions.

Symbols follow the paper (Chao et al., "HarDNet: A Low Memory Traffic Network", ICCV 2019,
https://arxiv.org/abs/1909.00948): ``k`` is the growth rate and ``m`` the growth multiplier of a block.
The numbers are those of the authors' released code, since the released checkpoints follow it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Activation = Literal["relu6", "relu"]


@dataclass(frozen=True)
class HarDNetConfig:
    """The configuration of one variant."""

    name: str
    stem_channels: tuple[int, ...]
    """Output channels of the convolutions in front of the first block: two in a classifier."""
    block_layers: tuple[int, ...]
    """Layers of each block."""
    growth_rates: tuple[int, ...]
    """k of each block: the width of a layer with a single link."""
    growth_multiplier: float
    """m: a layer's width grows by this factor for every link beyond the first."""
    transition_channels: tuple[int, ...]
    """Output channels of the 1x1 convolution behind each block."""
    downsample: tuple[bool, ...]
    """True if the resolution is halved behind the transition of this block."""
    depthwise: bool
    """Depthwise-separable layers and strided depthwise convolutions in place of 3x3 layers and max pooling."""
    drop_rate: float
    """Probability of dropout in front of the linear layer."""
    last_block_drop_rate: float | None = None
    """Probability of another dropout between the last block and its transition; None leaves it out."""
    block_activation: Activation = "relu6"
    """Activation inside the HarDBlocks. Stem and transitions of a classifier always have ReLU6."""
    decoder: bool = False
    """True for a segmentation network: the rows are its encoder's, and its decoder repeats them in reverse."""

    @property
    def head(self) -> str:
        """Path of the last layer."""
        return "finalConv" if self.decoder else f"base.{head_index(self)}.3"

    def rows(self) -> Iterator[tuple[int, int, int, bool]]:
        """Iterate over the HarDBlocks: layers, growth rate, transition channels, downsample."""
        return zip(self.block_layers, self.growth_rates, self.transition_channels, self.downsample, strict=True)


_HARDNET68 = HarDNetConfig(
    name="hardnet68",
    stem_channels=(32, 64),
    block_layers=(8, 16, 16, 16, 4),
    growth_rates=(14, 16, 20, 40, 160),
    growth_multiplier=1.7,
    transition_channels=(128, 256, 320, 640, 1024),
    downsample=(True, False, True, True, False),
    depthwise=False,
    drop_rate=0.1,
)
_CLASSIFIERS = (
    HarDNetConfig(
        name="hardnet39ds",
        stem_channels=(24, 48),
        block_layers=(4, 16, 8, 4),
        growth_rates=(16, 20, 64, 160),
        growth_multiplier=1.6,
        transition_channels=(96, 320, 640, 1024),
        downsample=(True, True, True, False),
        depthwise=True,
        drop_rate=0.05,
    ),
    replace(_HARDNET68, name="hardnet68ds", depthwise=True, drop_rate=0.05),
    _HARDNET68,
    HarDNetConfig(
        name="hardnet85",
        stem_channels=(48, 96),
        block_layers=(8, 16, 16, 16, 16, 4),
        growth_rates=(24, 24, 28, 36, 48, 256),
        growth_multiplier=1.7,
        transition_channels=(192, 256, 320, 480, 720, 1280),
        downsample=(True, False, True, False, True, False),
        depthwise=False,
        drop_rate=0.2,
        last_block_drop_rate=0.1,
    ),
)
CONFIGS: dict[str, HarDNetConfig] = {config.name: config for config in _CLASSIFIERS}
"""The four classifiers, by name."""
FCHARDNET70 = HarDNetConfig(
    name="fchardnet70",
    stem_channels=(16, 24, 32, 48),
    block_layers=(4, 4, 8, 8, 8),
    growth_rates=(10, 16, 18, 24, 32),
    growth_multiplier=1.7,
    transition_channels=(64, 96, 160, 224, 320),
    downsample=(True, True, True, True, False),
    depthwise=False,
    drop_rate=0.0,
    block_activation="relu",
    decoder=True,
)
"""FC-HarDNet-70 (https://github.com/PingoLH/FCHarDNet)."""
NETWORKS: dict[str, HarDNetConfig] = {**CONFIGS, FCHARDNET70.name: FCHARDNET70}
"""The four classifiers and the segmentation network, by name."""


def harmonic_links(layer: int) -> tuple[int, ...]:
    """Return the inputs of layer ``layer`` (1-based; 0 is the block's input), nearest first.

    Layer n is linked to layer n - 2**i for every power of two that divides n (paper, section 3.1).

    >>> harmonic_links(6), harmonic_links(8)
    ((5, 4), (7, 6, 4, 0))

    Raises:
        ValueError: ``layer`` is below 1.
    """
    if layer < 1:
        raise ValueError(f"layers of a HarDBlock are numbered from 1, got {layer}")
    links = []
    step = 1
    while layer % step == 0:
        links.append(layer - step)
        step *= 2
    return tuple(links)


def layer_width(layer: int, growth_rate: int, growth_multiplier: float) -> int:
    """Return the output channels of layer ``layer``: k * m**(links - 1), rounded to an even number.

    The rounding is the released code's: add one, truncate, halve, truncate, double. The product is taken
    factor by factor, as there, so that no width at the edge of a rounding step moves.
    """
    width = float(growth_rate)
    for _ in harmonic_links(layer)[1:]:
        width *= growth_multiplier
    return int(width + 1) // 2 * 2


def kept_layers(n_layers: int) -> tuple[int, ...]:
    """Return the layers that a block of ``n_layers`` passes on: every odd one and the last, in order.

    The block's input (layer 0) is not among them: the released code dropped that shortcut.
    """
    return tuple(n for n in range(1, n_layers + 1) if n % 2 == 1 or n == n_layers)


class StageIndices(NamedTuple):
    """The indices in ``HarDNet.base`` of one stage."""

    block: int
    transition: int
    downsample: int | None


def stage_indices(config: HarDNetConfig) -> tuple[StageIndices, ...]:
    """Return the indices in ``HarDNet.base`` of each block, its transition and its downsampling."""
    stages = []
    index = 3  # behind the stem
    for number, downsample in enumerate(config.downsample, start=1):
        has_dropout = number == len(config.downsample) and config.last_block_drop_rate is not None
        transition = index + 1 + has_dropout
        stages.append(StageIndices(index, transition, transition + 1 if downsample else None))
        index = transition + 1 + downsample
    return tuple(stages)


def head_index(config: HarDNetConfig) -> int:
    """Return the index of the head in ``HarDNet.base``, its last entry."""
    last = stage_indices(config)[-1]
    return (last.downsample or last.transition) + 1


class FeatureInfo(NamedTuple):
    """One level of the feature pyramid."""

    channels: int
    stride: int
    """Input pixels per feature pixel, after dilation."""
    module_index: int
    """Index in ``HarDNet.base`` of the module that outputs this level."""

    @property
    def module(self) -> str:
        """Path of the module."""
        return f"base.{self.module_index}"


def feature_levels(config: HarDNetConfig, output_stride: int = 32) -> tuple[FeatureInfo, ...]:
    """Return the levels of the pyramid: the last feature map of each resolution, strides 2, 4, 8, 16 and 32.

    >>> [level.module_index for level in feature_levels(CONFIGS["hardnet68"])]
    [1, 4, 9, 12, 15]
    """
    levels = [FeatureInfo(config.stem_channels[1], 2, 1)]
    last = len(config.block_layers) - 1
    for number, (stage, channels) in enumerate(zip(stage_indices(config), config.transition_channels, strict=True)):
        if stage.downsample is not None or number == last:
            stride = min(2 ** (len(levels) + 1), output_stride)
            levels.append(FeatureInfo(channels, stride, stage.transition))
    return tuple(levels)
