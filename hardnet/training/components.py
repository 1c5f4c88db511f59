"""Build model, running average, optimiser, learning-rate schedule, mixed precision, MixUp and CutMix of a run."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..factory import create_model
from ..models.config import CONFIGS, stage_indices
from ..models.network import HarDNet
from ..utils.distributed import Ranks
from ..utils.errors import DataError
from ..utils.text import printable
from ..weights.catalog import DEFAULT
from ..weights.load import Loaded, load_weights
from .comparison import class_names
from .data import ImageSource
from .options import TrainOptions
from .seeds import seeded

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_WARMUP_START = 0.01  # share of the learning rate at the first step


def build_model(
    options: TrainOptions, num_classes: int, ranks: Ranks, loaded: Loaded | None = None
) -> tuple[HarDNet, AveragedModel | None]:
    """Return the model, new or from weights that may have been read already, and its running average if one is kept."""
    with seeded(options.seed, "initial weights"):
        model = create_model(
            options.model,
            weights=loaded or options.weights,
            num_classes=num_classes,
            drop_rate=options.drop_rate,
            progress=ranks.first,
        )
    if options.freeze:
        model.base[:-1].requires_grad_(False)
    model = model.to(ranks.device).to(memory_format=torch.channels_last)

    def average(averaged: Any, current: Any, steps: Any) -> None:
        # TensorFlow's and timm's rule. A short run would else end with weights that are mostly the initial ones.
        decay = min(options.ema, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(decay)(averaged, current, steps)  # type: ignore[no-untyped-call,unused-ignore]

    ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True) if options.ema else None
    if options.compile:
        model.compile()  # in place: the names of the parameters stay
    return model, ema


def build_teachers(options: TrainOptions, classes: Sequence[str], ranks: Ranks) -> list[HarDNet]:
    """Return the models from whose mean probabilities the student learns, frozen, on the rank's device."""
    teachers = []
    for source in () if options.teacher is None else map(str.strip, options.teacher.split(",")):
        name, _, weights = source.partition(":")
        model = name if name in CONFIGS else None
        loaded = load_weights(weights or DEFAULT if model else source, model=model, progress=ranks.first)
        if list(map(printable, class_names(loaded, classes))) != list(map(printable, classes)):
            raise DataError(f"teacher {source} was trained on other classes, or numbers them in another order")
        preprocessing = loaded.preprocessing
        if preprocessing is not None and (preprocessing.mean, preprocessing.std) != (options.mean, options.std):
            raise ValueError(f"teacher {source} needs --mean {preprocessing.mean} --std {preprocessing.std}")
        teacher = create_model(loaded.config.name, weights=loaded).eval().requires_grad_(False)
        teachers.append(teacher.to(ranks.device).to(memory_format=torch.channels_last))
    return teachers


def make_criterion(options: TrainOptions, source: ImageSource) -> nn.Module:
    """Return the cross-entropy, with the classes weighed by the inverse of their numbers of images if asked for."""
    weights = None
    if options.class_weights == "balanced":
        counts = torch.bincount(torch.tensor(source.labels), minlength=len(source.classes)).clamp(min=1)
        weights = len(source) / len(source.classes) / counts
    return nn.CrossEntropyLoss(weights, label_smoothing=options.label_smoothing)


def make_mix(options: TrainOptions, num_classes: int) -> Mix | None:
    """Return torchvision's MixUp, CutMix, or either at random: images, classes -> images, targets (N, classes)."""
    from torchvision.transforms import v2  # type: ignore[import-untyped]

    mixes: list[Mix] = []
    if options.mixup:
        mixes.append(v2.MixUp(alpha=options.mixup, num_classes=num_classes))
    if options.cutmix:
        mixes.append(v2.CutMix(alpha=options.cutmix, num_classes=num_classes))
    return v2.RandomChoice(mixes) if len(mixes) == 2 else next(iter(mixes), None)


def set_training_mode(model: HarDNet, options: TrainOptions) -> None:
    """Put the model in training mode, except for what is frozen: its BatchNorm statistics stay as they are."""
    model.train()
    if options.freeze:
        model.base[:-1].eval()
    if options.freeze_bn:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def make_optimizer(model: nn.Module, options: TrainOptions, global_batch: int) -> torch.optim.Optimizer:
    """Return the optimiser of the trainable parameters; the learning rate is linear in the global batch."""
    lr = options.lr * global_batch / options.lr_batch
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = options.layer_decay ** _levels_below_head(model, name) if options.layer_decay < 1 else 1.0
            # Every parameter with one dimension is a bias, or a scale or shift of a normalisation.
            plain = not options.norm_decay and parameter.dim() <= 1
            new = {"params": [], "lr": lr * scale} | ({"weight_decay": 0.0} if plain else {})
            groups.setdefault((scale, plain), new)["params"].append(parameter)
    decay, momentum = options.weight_decay, options.momentum
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups.values(), lr=lr, weight_decay=decay)
    return torch.optim.SGD(groups.values(), lr=lr, momentum=momentum, weight_decay=decay, nesterov=momentum > 0)


def _levels_below_head(model: nn.Module, name: str) -> int:
    """Return how many stages a parameter is away from the head: 0 for the head, most for the stem."""
    assert isinstance(model, HarDNet)  # noqa: S101
    starts = [*(stage.block for stage in stage_indices(model.config)), len(model.base) - 1]
    return len(starts) - bisect_right(starts, int(name.split(".")[1]))


def make_scheduler(optimizer: torch.optim.Optimizer, options: TrainOptions, steps_per_epoch: int) -> LRScheduler:
    """Return the learning rate's curve over steps: a linear warm-up, then half a cosine down to ``min_lr``."""
    total = options.epochs * steps_per_epoch
    warmup = round(options.warmup * steps_per_epoch)

    def share(step: int) -> float:
        if step < warmup:
            return _WARMUP_START + (1 - _WARMUP_START) * step / warmup
        cosine = (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
        return options.min_lr + (1 - options.min_lr) * cosine

    return LambdaLR(optimizer, share)
