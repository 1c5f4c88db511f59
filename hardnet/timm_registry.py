"""HarDNet in timm: importing this module registers the four models there.

>>> import timm, hardnet.timm_registry
>>> model = timm.create_model("hardnet68", num_classes=10, in_chans=1)

``pretrained=True`` takes this library's weights, digests and cache, never timm's downloader: the tags are those of the
catalogue in lower case (``hardnet85.imagenet1k_v2``), and ``pretrained_cfg_overlay={"file": ...}`` a file of your own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from .factory import WeightsLike, create_model
from .models.config import CONFIGS, HarDNetConfig, feature_levels, head_index
from .timm_model import TimmHarDNet, take_levels, timm
from .weights.catalog import CATALOG, WeightsRecord

_SCHEME = "hardnet:"
"""In the place of an address, so that timm knows that there are weights but cannot fetch them unverified."""


def _pretrained_cfg(record: WeightsRecord) -> Any:
    wanted = record.preprocessing
    return timm.models.PretrainedCfg(
        url=f"{_SCHEME}{record.model}/{record.tag}",
        input_size=(3, wanted.crop, wanted.crop),
        min_input_size=(3, 32, 32),
        pool_size=(wanted.crop // 32, wanted.crop // 32),
        crop_pct=wanted.crop / wanted.resize,
        interpolation="bilinear",
        mean=wanted.mean,
        std=wanted.std,
        num_classes=record.num_classes,
        first_conv="base.0.conv",
        classifier=f"base.{head_index(CONFIGS[record.model])}.3",
        license=record.licence.lower(),
        description=f"{record.provenance}; top-1 error {record.top1_error:.2f} % as reported by {record.reported_by}",
        origin_url="https://github.com/PingoLH/Pytorch-HarDNet",
        paper_name="HarDNet: A Low Memory Traffic Network",
        paper_ids="arXiv:1909.00948",
    )


default_cfgs = timm.models.generate_default_cfgs(  # where register_model looks for them
    {f"{model}.{tag.lower()}": _pretrained_cfg(record) for (model, tag), record in CATALOG.items()}
)


def _create(
    name: str,
    pretrained: bool,
    *,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **keywords: Any,
) -> nn.Module:
    if cache_dir is not None:
        raise ValueError("cache_dir: HarDNet's weights are kept in torch.hub's cache, set TORCH_HOME to move it")
    cfg = timm.models.resolve_pretrained_cfg(
        name, pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=pretrained_cfg_overlay
    )
    features: dict[str, Any] = {"flatten_sequential": True}
    if keywords.get("features_only"):
        count = len(feature_levels(CONFIGS[name]))
        features["out_indices"] = tuple(take_levels(keywords.pop("out_indices", None), count))
    model: nn.Module = timm.models.build_model_with_cfg(
        partial(_build, CONFIGS[name], cfg, pretrained),
        name,
        pretrained=False,  # what timm does with it is done in _build
        pretrained_cfg=cfg.to_dict(),
        feature_cfg=features,
        **keywords,
    )
    return model.to(device, dtype)


def _build(config: HarDNetConfig, cfg: Any, pretrained: bool, **keywords: Any) -> TimmHarDNet:
    record = _record(config.name, cfg)
    if record is not None:
        config = replace(config, block_activation=record.block_activation)
    if not pretrained:
        return TimmHarDNet(config, **keywords)
    weights = _weights(config.name, cfg, record)
    own = {key: value for key, value in keywords.items() if key in ("num_classes", "in_chans", "drop_rate")}
    source = create_model(config.name, weights=weights, **own)
    model = TimmHarDNet(source.config, **keywords)
    model.load_state_dict(source.state_dict())
    model.weights_record = source.weights_record
    return model


def _record(name: str, cfg: Any) -> WeightsRecord | None:
    return CATALOG.get((name, (cfg.tag or "").upper()))


def _weights(name: str, cfg: Any, record: WeightsRecord | None) -> WeightsLike:
    """Return what ``pretrained=True`` means: a file that was named, or the tag's record."""
    if cfg.file:
        return str(cfg.file)
    foreign = cfg.state_dict or cfg.hf_hub_id or not str(cfg.url).startswith(_SCHEME)
    if foreign or record is None:
        known = ", ".join(tag.lower() for model, tag in CATALOG if model == name)
        raise ValueError(
            f"pretrained: {name} takes the weights of its catalogue ({known}), or those of a file: "
            'pretrained_cfg_overlay={"file": path}'
        )
    return record


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **keywords: Any) -> nn.Module:
        return _create(name, pretrained, **keywords)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{name} for timm.create_model; see :class:`TimmHarDNet` for the keywords."
    return create


def _register() -> None:
    """Add the models to timm's registry, where they are not there yet.

    Raises:
        ImportError: this timm has a model of its own under one of the names.
    """
    taken = {name: timm.model_entrypoint(name).__module__ for name in CONFIGS if timm.is_model(name)}
    foreign = {name: module for name, module in taken.items() if module != __name__}
    if foreign:
        listed = ", ".join(f"{name} ({module})" for name, module in foreign.items())
        raise ImportError(
            f"timm {timm.__version__} has other models under these names: {listed}. They were left as they are; "
            "hardnet.create_model builds the models without timm"
        )
    for name in CONFIGS:
        if name not in taken:
            globals()[name] = timm.models.register_model(_entry_point(name))


__all__ = ["TimmHarDNet"]

_register()
