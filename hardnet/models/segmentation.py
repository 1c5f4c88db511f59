"""FC-HarDNet, the authors' segmentation network: an encoder of HarDBlocks and a decoder of the same blocks.

Module names and the numbering of ``base`` are those of the authors' released code, so that its checkpoints load
strictly.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..utils.validation import check_count
from .config import HarDNetConfig
from .layers import ConvLayer, HarDBlock
from .network import HarDNet, ImageModule


class FCHarDNet(ImageModule):
    """Segmentation network: (N, in_chans, H, W) -> (N, num_classes, H, W) logits, for any H and W from 64 pixels up.

    The encoder ``base`` ends at stride 64. On the way back to stride 4, the decoder joins the output of the encoder's
    block of each level. The logits are resized from there to the size of the input.

    Args:
        config: the variant: ``hardnet.models.config.FCHARDNET70`` or one of your own.
        num_classes: channels of the logits.
        in_chans: channels of the input image.

    Raises:
        ValueError: as for :class:`hardnet.HarDNet`, with 64 pixels.

    Source: https://github.com/PingoLH/FCHarDNet
    """

    min_input_size = 64

    def __init__(self, config: HarDNetConfig, *, num_classes: int = 19, in_chans: int = 3) -> None:
        super().__init__(config, in_chans)
        check_count("num_classes", num_classes, least=1)
        self.num_classes = num_classes
        self.base = nn.Sequential(*_encoder(config, in_chans))
        self.denseBlocksUp, self.conv1x1_up = nn.ModuleList(), nn.ModuleList()
        *self._skips, _ = (index for index, module in enumerate(self.base) if isinstance(module, HarDBlock))
        channels = config.transition_channels[-1]
        for index in reversed(self._skips):
            skip = cast(HarDBlock, self.base[index])
            joined = channels + skip.out_channels
            self.conv1x1_up.append(ConvLayer(joined, joined // 2, kernel_size=1, activation="relu"))
            row = (skip.growth_rate, skip.growth_multiplier, skip.n_layers)
            block = HarDBlock(joined // 2, *row, activation="relu")
            self.denseBlocksUp.append(block)
            channels = block.out_channels
        self.finalConv = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_classes, H, W) logits."""
        self._check_input(x)
        height, width = x.shape[2], x.shape[3]
        skips = []
        for index, module in enumerate(self.base):
            x = module(x)
            if index in self._skips:
                skips.append(x)
        for conv, block in zip(self.conv1x1_up, self.denseBlocksUp):  # noqa: B905  (TorchScript knows no strict=)
            skip = skips.pop()
            x = block(conv(torch.cat([_resized(x, skip.shape[2], skip.shape[3]), skip], 1)))
        return _resized(self.finalConv(x), height, width)


def _encoder(config: HarDNetConfig, in_chans: int) -> Iterator[nn.Module]:
    """Build ``base`` one entry after the other: (N, in_chans, H, W) -> (N, transition_channels[-1], H/64, W/64)."""
    channels = in_chans
    for out_channels, stride in zip(config.stem_channels, (2, 1, 2, 1), strict=True):
        yield ConvLayer(channels, out_channels, stride=stride, activation="relu")
        channels = out_channels
    for n_layers, growth_rate, out_channels, downsample in config.rows():
        block = HarDBlock(channels, growth_rate, config.growth_multiplier, n_layers, activation="relu")
        yield block
        yield ConvLayer(block.out_channels, out_channels, kernel_size=1, activation="relu")
        channels = out_channels
        if downsample:
            yield nn.AvgPool2d(2, stride=2)


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)


def build_network(config: HarDNetConfig, **options: Any) -> HarDNet | FCHarDNet:
    """Build the classifier or the segmentation network of a configuration."""
    return (FCHarDNet if config.decoder else HarDNet)(config, **options)
