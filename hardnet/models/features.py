"""The feature pyramid: a HarDNet without its head, as a backbone for detection and segmentation."""

from collections.abc import Sequence
from itertools import islice

from torch import Tensor, nn

from .config import HarDNetConfig, feature_levels
from .network import ImageModule, body


class HarDNetFeatures(ImageModule):
    """Feature pyramid: (N, in_chans, H, W) -> a list of (N, C_i, H / stride_i, W / stride_i).

    H and W are 32 pixels or more. If a stride does not divide them, depthwise-separable variants round up and the
    others, from stride 8 on, down. Modules carry the classifier's names, so that the classifier's weights load. Layers
    behind the last level are neither built nor run.

    Args:
        config: the variant.
        out_indices: levels of the pyramid, rising, out of 0 to 4 for the strides 2, 4, 8, 16 and 32; negative ones
            count from the end.
        output_stride: 32, 16 or 8. Once it is reached, later downsampling layers keep the resolution and the
            layers after them are dilated.
        in_chans: channels of the input image.

    Attributes:
        feature_info: channels, stride and module path of each entry of the list.

    Raises:
        ValueError: a level does not exist, the levels do not rise, or another output stride; in ``forward``, as for
            :class:`hardnet.HarDNet`.
    """

    def __init__(
        self, config: HarDNetConfig, *, out_indices: Sequence[int] = (1, 2, 3, 4), output_stride: int = 32,
        in_chans: int = 3,
    ) -> None:  # fmt: skip
        super().__init__(config, in_chans)
        levels = feature_levels(config, output_stride)
        self.out_indices = checked_indices(out_indices, len(levels))
        self.output_stride = output_stride
        self.feature_info = tuple(levels[index] for index in self.out_indices)
        self._taps = [level.module_index for level in self.feature_info]
        self.base = nn.Sequential(*islice(body(config, in_chans, output_stride), self._taps[-1] + 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_chans, H, W) -> one feature map per entry of ``feature_info``, the finest first."""
        self._check_input(x)
        features = []
        for index, module in enumerate(self.base):
            x = module(x)
            if index in self._taps:
                features.append(x)
        return features


def checked_indices(out_indices: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the indices counted from the start."""
    try:
        indices = tuple(range(count)[index] for index in out_indices)
    except (TypeError, IndexError):
        indices = ()
    if not indices or list(indices) != sorted(set(indices)):
        rule = f"a rising sequence of levels 0 to {count - 1} or -{count} to -1"
        raise ValueError(f"out_indices must be {rule}; got {out_indices!r}")
    return indices
