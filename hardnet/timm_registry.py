"""HarDNet in timm: importing this module registers the four models there.

>>> import timm, hardnet.timm_registry
>>> model = timm.create_model("hardnet68", num_classes=10, in_chans=1)

``pretrained=True`` takes this library's weights, digests and cache, never timm's downloader: the tags are those of the
catalogue in lower case (``hardnet85.imagenet1k_v2``), and ``pretrained_cfg_overlay={"file": ...}`` a file of your own.
"""

# Annotations must not be strings here: torch.jit.script cannot read them in a graph of torch.fx.

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from .models.config import CONFIGS, HarDNetConfig, feature_levels
from .models.features import checked_indices
from .models.network import HarDNet, body
from .utils.optional import require
from .weights.catalog import CATALOG, WeightsRecord
from .weights.load import Source, fill, load_weights

LOWEST_TIMM = "1.0.16"

timm = require("timm", LOWEST_TIMM, extra="timm")
take_indices = timm.models._features.feature_take_indices  # as a global, so that TorchScript finds it

_SCHEME = "hardnet:"
"""In place of a URL, so that timm knows that there are weights but cannot fetch them unverified."""
_POOLS = ("avg", "max", "avgmax", "")


class TimmHarDNet(HarDNet):
    """:class:`hardnet.HarDNet` with the additional methods of timm's models. State dict and results are the same.

    Args:
        config, num_classes, in_chans, drop_rate: as for :class:`hardnet.HarDNet`.
        global_pool: "avg", "max", "avgmax", or "" for none, which goes with ``num_classes=0``.
        output_stride: 32, 16 or 8; below 32, dilation in place of the last downsamplings.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, config: HarDNetConfig, *, num_classes: int = 1000, in_chans: int = 3, drop_rate: float | None = None,
        global_pool: str = "avg", output_stride: int = 32,
    ) -> None:  # fmt: skip
        super().__init__(config, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate)
        if output_stride != 32:
            self.base = nn.Sequential(*body(config, in_chans, output_stride), self.base[-1])
        self.drop_rate = config.drop_rate if drop_rate is None else drop_rate
        self.head_hidden_size = self.num_features
        self._levels = [level.module_index for level in feature_levels(config)]
        self.feature_info = [
            {"num_chs": level.channels, "reduction": level.stride, "module": level.module}
            for level in feature_levels(config, output_stride)
        ]
        self._set_pool(global_pool, num_classes)

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, norm: bool = False, stop_early: bool = False,
        output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:  # fmt: skip
        """(N, in_chans, H, W) -> the last feature map and the chosen levels, or the latter alone.

        ``indices`` are levels 0 to 4, or the number of last ones; None means all. ``norm`` has no effect.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt}")
        if not torch.jit.is_scripting():
            self._check_input(x)
        selected, highest = take_indices(len(self._levels), indices)
        taps = [self._levels[level] for level in selected]
        last = self._levels[highest] if stop_early else len(self.base) - 2
        outputs: list[Tensor] = []
        for index, module in enumerate(self.base):
            if index <= last:
                x = module(x)
                if index in taps:
                    outputs.append(x)
        if intermediates_only:
            return outputs
        return x, outputs

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop everything after the last chosen level, and the head; return the levels, counted from the start."""
        selected, highest = take_indices(len(self._levels), indices)
        stop = self._levels[highest] + 1
        pruned = stop < len(self.base) - 1
        if pruned:
            self.base = nn.Sequential(*self.base[:stop], self.base[-1])
            self._levels = self._levels[: highest + 1]
            self.num_features = self.head_hidden_size = feature_levels(self.config)[highest].channels
        if pruned or prune_head:
            self.reset_classifier(0, "")
        return list(selected)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the linear layer, as :meth:`hardnet.HarDNet.reset_classifier`, and the pooling.

        ``global_pool`` is as on construction; None keeps the pooling, or sets "avg" if classes need one.
        """
        if global_pool is None:
            global_pool = self.global_pool or ("avg" if num_classes else "")
        self._set_pool(global_pool, num_classes)
        super().reset_classifier(num_classes)

    def _set_pool(self, pool: str, num_classes: int) -> None:
        if pool not in _POOLS:
            raise ValueError(f"global_pool must be one of {_POOLS}, got {pool!r}")
        if not pool and num_classes:
            raise ValueError(f"global_pool='' goes with num_classes=0, got {num_classes}: classes need pooled features")
        pooling: nn.Module = nn.Identity()
        if pool:
            pooling = nn.AdaptiveAvgPool2d(1) if pool == "avg" else timm.layers.SelectAdaptivePool2d(pool_type=pool)
        layers = (pooling, nn.Flatten() if pool else nn.Identity(), *cast(nn.Sequential, self.base[-1])[2:])
        self.base[-1] = nn.Sequential(*layers).train(self.training)
        self.global_pool = pool


def _pretrained_cfg(record: WeightsRecord) -> Any:
    values = record.preprocessing
    return timm.models.PretrainedCfg(
        url=f"{_SCHEME}{record.model}/{record.tag}", input_size=(3, values.crop, values.crop),
        min_input_size=(3, 32, 32), pool_size=(values.crop // 32, values.crop // 32),
        crop_pct=values.crop / values.resize, interpolation=values.interpolation, mean=values.mean, std=values.std,
        num_classes=record.num_classes, first_conv="base.0.conv", classifier=CONFIGS[record.model].head,
        license=record.licence.lower(), paper_ids="arXiv:1909.00948",
    )  # fmt: skip


default_cfgs = timm.models.generate_default_cfgs(  # register_model looks for them here
    {f"{model}.{tag.lower()}": _pretrained_cfg(record) for (model, tag), record in CATALOG.items()}
)


def _create(config: HarDNetConfig, cfg: Any, pretrained: bool, **keywords: Any) -> TimmHarDNet:
    record = CATALOG.get((config.name, (cfg.tag or "").upper()))
    if record is not None:
        config = replace(config, block_activation=record.block_activation)
    if not pretrained:
        return TimmHarDNet(config, **keywords)
    source: Source | None = None
    if cfg.source == "hf-hub" and cfg.hf_hub_id:
        source = f"hf-hub:{cfg.hf_hub_id}"
    elif cfg.file:
        source = str(cfg.file)
    elif str(cfg.url).startswith(_SCHEME) and not (cfg.state_dict or cfg.hf_hub_id):
        source = record
    if source is None:
        advice = 'a tag of the catalogue, or a file by pretrained_cfg_overlay={"file": path}'
        raise ValueError(f"pretrained: {config.name} takes {advice}")
    loaded = load_weights(source, model=config.name)
    model = TimmHarDNet(loaded.config, **keywords)
    fill(model, loaded)
    if model.num_classes == cfg.num_classes:  # the weights' own head
        model.categories = loaded.categories
    return model


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def create(
        pretrained: bool = False, *, pretrained_cfg: Any = None, pretrained_cfg_overlay: dict[str, Any] | None = None,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None, **keywords: Any,
    ) -> nn.Module:  # fmt: skip
        cfg = timm.models.resolve_pretrained_cfg(
            name, pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=pretrained_cfg_overlay
        )
        if keywords.get("features_only"):
            levels: Any = keywords.get("out_indices")
            is_count = levels is None or isinstance(levels, int)
            keywords["out_indices"] = tuple(take_indices(5, levels)[0] if is_count else checked_indices(levels, 5))
        model: nn.Module = timm.models.build_model_with_cfg(
            partial(_create, CONFIGS[name], cfg, pretrained),
            name,
            pretrained=False,  # what timm does with it is done in _create
            pretrained_cfg=cfg.to_dict(),
            feature_cfg={"flatten_sequential": True},
            **keywords,
        )
        return model.to(device, dtype)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{name} for timm.create_model; see :class:`TimmHarDNet` for the keywords."
    return create


__all__ = ["TimmHarDNet"]

for _name in CONFIGS:
    globals()[_name] = timm.models.register_model(_entry_point(_name))
