"""The parts of a run: the model and its running average, its parallel form, mixed precision, MixUp and CutMix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..factory import create_model
from ..models.network import HarDNet
from .distributed import Ranks
from .optim import freeze_backbone
from .options import TrainOptions
from .seeds import seeded

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def build_model(options: TrainOptions, num_classes: int, ranks: Ranks) -> tuple[HarDNet, AveragedModel | None]:
    """Return the model on the rank's device, new or from weights, and its running average where one is kept."""
    with seeded(options.seed, "initial weights"):
        model = create_model(
            options.model,
            weights=options.weights,
            num_classes=num_classes,
            drop_rate=options.drop_rate,
            progress=ranks.first,
        )
    if options.freeze:
        freeze_backbone(model)
    if options.sync_bn:
        if ranks.device.type != "cuda":
            raise ValueError("sync_bn needs CUDA: torch has no synchronised BatchNorm on CPU")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call,unused-ignore]
    model = model.to(ranks.device)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]
    ema = None
    if options.ema:
        average = get_ema_multi_avg_fn(options.ema)  # type: ignore[no-untyped-call,unused-ignore]
        ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    if options.compile:
        model.compile()  # in place: the names of the parameters stay
    return model, ema


def parallelise(model: HarDNet, options: TrainOptions, ranks: Ranks) -> nn.Module:
    """Return the model as the training step calls it: with gradients averaged over the ranks."""
    if ranks.size == 1:
        return model
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def autocast(options: TrainOptions, device: torch.device) -> torch.autocast:
    """Return the context of mixed precision for the forward pass; it does nothing where ``amp`` is "none"."""
    return torch.autocast(device.type, _AMP_TYPES.get(options.amp), enabled=options.amp in _AMP_TYPES)


def make_mix(options: TrainOptions, num_classes: int) -> Mix | None:
    """Return torchvision's MixUp, CutMix, or either at random: images, classes -> images, (N, classes) targets."""
    from torchvision.transforms import v2  # type: ignore[import-untyped]

    mixes: list[Any] = []
    if options.mixup:
        mixes.append(v2.MixUp(alpha=options.mixup, num_classes=num_classes))
    if options.cutmix:
        mixes.append(v2.CutMix(alpha=options.cutmix, num_classes=num_classes))
    if not mixes:
        return None
    mix: Mix = mixes[0] if len(mixes) == 1 else v2.RandomChoice(mixes)
    return mix
