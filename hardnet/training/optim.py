"""Which parameters are trained, by what optimiser, along which curve of the learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from ..models.network import HarDNet
from .errors import TrainingError
from .options import TrainOptions

_WARMUP_START = 0.01
"""The share of the learning rate at the first step of the warm-up."""


def freeze_backbone(model: HarDNet) -> None:
    """Leave only the head, the last entry of ``model.base``, to be trained."""
    for parameter in model.base[:-1].parameters():
        parameter.requires_grad_(False)


def set_training_mode(model: HarDNet, options: TrainOptions) -> None:
    """Put the model in training mode, except for what is frozen: its BatchNorm statistics stay as they are."""
    model.train()
    if options.freeze:
        model.base[:-1].eval()
    if options.freeze_bn:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def scaled_lr(options: TrainOptions, ranks: int) -> float:
    """Return the learning rate for the global batch: linear, ``lr`` at ``lr_batch`` images."""
    return options.lr * options.batch_size * options.accumulate * ranks / options.lr_batch


def make_optimizer(model: nn.Module, options: TrainOptions, ranks: int) -> torch.optim.Optimizer:
    """Return the optimiser of the trainable parameters, with weight decay on those that want it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise TrainingError("the model has no parameter that could be trained")
    groups: list[dict[str, Any]] = [{"params": trained}]
    if not options.norm_decay:
        # Every parameter with one dimension is a bias, or a scale or shift of a normalisation.
        groups = [
            {"params": [parameter for parameter in trained if parameter.dim() > 1]},
            {"params": [parameter for parameter in trained if parameter.dim() <= 1], "weight_decay": 0.0},
        ]
    lr = scaled_lr(options, ranks)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=options.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        nesterov=options.momentum > 0,
    )


def make_scheduler(optimizer: torch.optim.Optimizer, options: TrainOptions, steps_per_epoch: int) -> LRScheduler:
    """Return the learning rate's curve over steps: a linear warm-up, then half a cosine down to ``min_lr``.

    Raises:
        ValueError: the warm-up is as long as the run.
    """
    total = options.epochs * steps_per_epoch
    warmup = round(options.warmup * steps_per_epoch)
    if warmup >= total:
        raise ValueError(f"a warm-up of {options.warmup} epochs leaves nothing of a run of {options.epochs}")
    cosine = CosineAnnealingLR(optimizer, total - warmup, eta_min=optimizer.defaults["lr"] * options.min_lr)
    if not warmup:
        return cosine
    return SequentialLR(optimizer, [LinearLR(optimizer, _WARMUP_START, 1.0, warmup), cosine], [warmup])
