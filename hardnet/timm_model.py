"""The adapter that timm needs around :class:`hardnet.HarDNet`; see :mod:`hardnet.timm_registry`."""

# Annotations are evaluated here: torch.jit.script cannot read a graph that torch.fx made of a forward whose annotations
# are strings.

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .models.config import HarDNetConfig, feature_levels, stage_indices
from .models.features import OUTPUT_STRIDES, _checked_indices
from .models.network import HarDNet, body
from .utils.optional import require

LOWEST_TIMM = "1.0.3"

timm = require("timm", LOWEST_TIMM, extra="timm")

GLOBAL_POOLS = ("avg", "max", "avgmax", "")


class TimmHarDNet(HarDNet):
    """:class:`hardnet.HarDNet` with what timm asks of a model beyond it. State dict and results are the same.

    Args:
        config: the variant.
        num_classes: width of the logits; 0 leaves the linear layer out.
        in_chans: channels of the input image.
        drop_rate: probability of dropout before the linear layer; None takes the variant's own.
        global_pool: "avg", "max", "avgmax", or "" for none, which goes with ``num_classes=0``.
        output_stride: 32, 16 or 8; below 32, dilation in place of the last downsamplings.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        config: HarDNetConfig,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float | None = None,
        global_pool: str = "avg",
        output_stride: int = 32,
    ) -> None:
        super().__init__(config, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate)
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride must be one of {OUTPUT_STRIDES}, got {output_stride!r}")
        if output_stride != OUTPUT_STRIDES[0]:
            self.base = nn.Sequential(*body(config, in_chans, output_stride), self.base[-1])
        self.drop_rate = config.drop_rate if drop_rate is None else drop_rate
        self.head_hidden_size = self.num_features
        self.feature_info = [
            {
                "num_chs": level.channels,
                "reduction": min(level.stride, output_stride),
                "module": f"base.{level.module_index}",
            }
            for level in feature_levels(config)
        ]
        self._set_pool(global_pool)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_classes); (N, num_features, H/32, W/32) without pooling."""
        if not torch.jit.is_scripting():  # as in HarDNet, here for the sake of its annotations: see above
            self._check_input(x)
        logits: Tensor = self.base(x)
        return logits

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """(N, in_chans, H, W) -> the last feature map and the levels asked for, or the latter alone.

        Args:
            x: images.
            indices: levels 0 to 4, or how many of the last ones; None means all.
            norm: has no meaning here, there is no norm behind the last stage.
            stop_early: run nothing behind the last level asked for.
            output_fmt: only "NCHW".
            intermediates_only: leave out the last feature map.

        Raises:
            ValueError: another ``output_fmt``, a level that does not exist, or an input that the model refuses.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        self._check_input(x)
        taps = self._taps(indices)
        found = []
        for index, module in enumerate(self.base[: taps[-1] + 1 if stop_early else -1]):
            x = module(x)
            if index in taps:
                found.append(x)
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what lies behind the last level asked for, and the head; return the levels, counted from the start.

        Args:
            indices: as in :meth:`forward_intermediates`.
            prune_norm: has no meaning here, there is no norm behind the last stage.
            prune_head: replace the linear layer and the pooling, as ``reset_classifier(0, "")`` does.

        Raises:
            ValueError: a level does not exist, or the levels do not rise.
        """
        taps = self._taps(indices)
        pruned = taps[-1] < len(self.base) - 2
        if pruned:
            self.base = nn.Sequential(*self.base[: taps[-1] + 1], self.base[-1])
            last = next(level for level in feature_levels(self.config) if level.module_index == taps[-1])
            self.num_features = self.head_hidden_size = last.channels
        if pruned or prune_head:
            self.reset_classifier(0, "")
        return [position for position, level in enumerate(feature_levels(self.config)) if level.module_index in taps]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the linear layer, as :meth:`hardnet.HarDNet.reset_classifier`, and the pooling where one is given.

        Raises:
            ValueError: a number below 0, no such pooling, or classes without pooling.
        """
        pool = self.global_pool if global_pool is None else global_pool
        _check_pool(pool, num_classes)
        super().reset_classifier(num_classes)
        self._set_pool(pool)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns for learning rates by depth: the stem, the stages, and the head for the rest."""
        starts = [stage.block for stage in stage_indices(self.config)]
        ends = [*starts[1:], len(self.base) - 1]
        stages = [
            (rf"^base\.(?:{'|'.join(map(str, range(start, end)))})\.", (number,))
            for number, (start, end) in enumerate(zip(starts, ends, strict=True))
            if start < end
        ]
        return {"stem": r"^base\.[0-2]\.", "blocks": stages}

    def _taps(self, indices: int | Sequence[int] | None) -> list[int]:
        levels = [level for level in feature_levels(self.config) if level.module_index < len(self.base) - 1]
        return [levels[index].module_index for index in take_levels(indices, len(levels))]

    def _set_pool(self, global_pool: str) -> None:
        _check_pool(global_pool, self.num_classes)
        head = self.base[-1]
        assert isinstance(head, nn.Sequential)  # noqa: S101 (for the type checker)
        if global_pool in ("avg", ""):
            head[0] = nn.AdaptiveAvgPool2d(1) if global_pool else nn.Identity()
        else:
            head[0] = timm.layers.SelectAdaptivePool2d(pool_type=global_pool)
        head[1] = nn.Flatten() if global_pool else nn.Identity()
        self.global_pool = global_pool


def _check_pool(global_pool: str, num_classes: int) -> None:
    if global_pool not in GLOBAL_POOLS:
        raise ValueError(f"global_pool must be one of {GLOBAL_POOLS}, got {global_pool!r}")
    if not global_pool and num_classes:
        raise ValueError(f"global_pool='' goes with num_classes=0, got {num_classes}: the classes need pooled features")


def take_levels(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Return levels counted from the start, timm's short forms included: None means all, a number the last ones.

    Raises:
        ValueError: a level does not exist, or the levels do not rise.
    """
    if indices is None:
        return list(range(count))
    if not isinstance(indices, int):
        return _checked_indices(indices, count)
    if isinstance(indices, bool) or not 1 <= indices <= count:
        raise ValueError(f"out_indices as a number means the last 1 to {count} levels, got {indices!r}")
    return list(range(count - indices, count))
