"""Every number of a training run in one frozen row; the defaults are the recipe for ImageNet."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

CHOICES: dict[str, tuple[str, ...]] = {
    "dataset": ("auto", "imagefolder", "fashion-mnist"),
    "crop": ("resized", "pad"),
    "auto_augment": ("none", "rand", "trivial"),
    "optimizer": ("sgd", "adamw"),
    "amp": ("none", "bf16", "fp16"),
}
"""What the options that are words may be."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train. Sizes in pixels, durations in epochs unless a name says otherwise.

    The defaults are the authors' recipe for ImageNet: SGD with Nesterov momentum 0.9, learning rate 0.05 for a
    global batch of 256, weight decay 6e-5, 150 epochs of a cosine, RandomResizedCrop to 224 pixels and flips.

    Raises:
        ValueError: a value is out of its range, or two exclude each other.
    """

    data: str
    """A folder, or "fashion-mnist" for the files of Debian's package."""
    output: str
    """The folder of the run: checkpoints, metrics.jsonl, curves."""
    dataset: str = "auto"
    """"imagefolder", "fashion-mnist", or "auto", which looks for the latter's files."""
    model: str = "hardnet39ds"
    weights: str | None = None
    """Where to start from: a tag of the catalogue or a file. None starts from random numbers."""
    num_classes: int | None = None
    """None takes as many as the data set has."""
    drop_rate: float | None = None
    """The probability of dropout before the linear layer; None takes the variant's own."""
    freeze: bool = False
    """Train the head alone; the backbone keeps its weights and its BatchNorm statistics."""
    freeze_bn: bool = False
    """BatchNorm keeps its running statistics and normalises by them; its weights are trained."""

    epochs: int = 150
    batch_size: int = 256
    """Images of one step on one rank."""
    accumulate: int = 1
    """Steps whose gradients are averaged before the optimiser acts."""
    seed: int = 0
    """Decides the initial weights, the order, the augmentation and the dropout."""
    hold_out: int = 0
    """Images of the training set that are kept for validation; 0 validates on the folder ``val`` where there is one."""
    eval_every: int = 1
    """Epochs between validations."""

    size: int = 224
    """The side of the training images."""
    size_schedule: str = ""
    """As in "40@0,52@10": 40 pixels from epoch 0, 52 from epoch 10. Empty: ``size`` throughout."""
    crop: str = "resized"
    """resized: a random part (``min_scale`` of the area at least); pad: resize, pad, and cut at random."""
    min_scale: float = 0.08
    """Of "resized": the smallest part, as a share of the area."""
    pad: float = 0.1
    """Of "pad": the margin on each side, as a share of the size."""
    flip: float = 0.5
    """The probability of a horizontal flip."""
    erase: float = 0.0
    """The probability of erasing a random rectangle."""
    erase_max: float = 0.33
    """The largest rectangle, as a share of the area."""
    auto_augment: str = "none"
    """"rand": RandAugment; "trivial": TrivialAugment; "none"."""
    mixup: float = 0.0
    """The parameter alpha of MixUp; 0 leaves it out. With CutMix as well, each batch takes one of the two."""
    cutmix: float = 0.0
    """The parameter alpha of CutMix; 0 leaves it out."""
    label_smoothing: float = 0.0
    """The share of the target that is spread over all classes."""
    mean: tuple[float, ...] | None = None
    """Of each colour, in [0, 1]; None takes the data set's own."""
    std: tuple[float, ...] | None = None
    """Likewise."""
    eval_size: int | None = None
    """None takes ``size``."""
    crop_ratio: float = 0.875
    """Of the resized shorter side, the share that evaluation crops from the centre."""

    optimizer: str = "sgd"
    """"sgd", with Nesterov momentum, or "adamw"."""
    lr: float = 0.05
    """For a global batch of ``lr_batch``; scaled linearly with the global batch."""
    lr_batch: int = 256
    min_lr: float = 0.0
    """Where the cosine ends, as a share of the learning rate."""
    warmup: float = 0.0
    """Epochs in which the learning rate rises linearly."""
    momentum: float = 0.9
    """Of "sgd"."""
    weight_decay: float = 6e-5
    """L2 penalty ("sgd"), decoupled decay ("adamw")."""
    norm_decay: bool = True
    """Weight decay on normalisation and biases as well."""
    clip: float = 0.0
    """The largest norm of the gradient; 0 does not clip."""
    ema: float = 0.0
    """The decay per step of the running average of the weights; 0 keeps none."""

    amp: str = "none"
    """Mixed precision: "bf16" or "fp16"; "none"."""
    channels_last: bool = True
    """The memory format of images and weights."""
    compile: bool = False
    """Whether ``torch.compile`` is used."""
    sync_bn: bool = False
    """BatchNorm's statistics are those of all ranks; on CUDA only."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", ..., or "auto": CUDA where there is one."""
    workers: int = 4
    """Processes that read images, per rank."""
    skip_bad_images: bool = False
    """Pass over images that cannot be read, and count them."""
    resume: str = ""
    """"auto" goes on from the output folder's checkpoint if there is one; or a checkpoint's path."""
    save_every: int = 0
    """Also write the checkpoint every so many steps within an epoch; 0 writes it between epochs only."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                raise ValueError(f"{name} must lie between {low} and {high}, got {value!r}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and (len(value) != 3 or (name == "std" and min(value) <= 0)):
                raise ValueError(f"{name} takes three numbers, one per colour (std: positive ones), got {value!r}")
        if self.label_smoothing and self.label_smoothing >= 1:
            raise ValueError(f"label_smoothing must be less than 1, got {self.label_smoothing!r}")
        if self.freeze and self.weights is None:
            raise ValueError("freeze keeps the backbone as it is: give the weights to start from as well")
        parse_size_schedule(self.size_schedule)

    def size_at(self, epoch: int) -> int:
        """Return the size of the training images in an epoch, counted from 0."""
        current = self.size
        for size, first in parse_size_schedule(self.size_schedule):
            if epoch >= first:
                current = size
        return current

    def asdict(self) -> dict[str, Any]:
        """Return plain values only, as checkpoints hold them."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }


_RANGES: dict[str, tuple[float, float]] = {
    "num_classes": (1, 10**6),
    "drop_rate": (0, 0.999),
    "epochs": (1, 10**6),
    "batch_size": (1, 10**6),
    "accumulate": (1, 10**6),
    "seed": (0, 2**62),
    "hold_out": (0, 10**9),
    "eval_every": (1, 10**6),
    "size": (32, 4096),
    "eval_size": (32, 4096),
    "min_scale": (1e-6, 1),
    "pad": (0, 1),
    "flip": (0, 1),
    "erase": (0, 1),
    "erase_max": (0.02, 1),
    "mixup": (0, 100),
    "cutmix": (0, 100),
    "label_smoothing": (0, 1),
    "crop_ratio": (0.01, 1),
    "lr": (0, 10**38),
    "lr_batch": (1, 10**9),
    "min_lr": (0, 1),
    "warmup": (0, 10**6),
    "momentum": (0, 1),
    "weight_decay": (0, 10**6),
    "clip": (0, 10**9),
    "ema": (0, 1),
    "workers": (0, 1024),
    "save_every": (0, 10**9),
}


def parse_size_schedule(text: str) -> list[tuple[int, int]]:
    """Turn "40@0,52@10" into [(40, 0), (52, 10)]: pairs of a size and the epoch from which it holds.

    Raises:
        ValueError: the text has another form, a size is below 32, or the epochs do not rise.
    """
    pairs = []
    for part in filter(None, text.split(",")):
        size, separator, first = part.strip().partition("@")
        if not (separator and size.isdecimal() and first.isdecimal()) or int(size) < 32:
            raise ValueError(
                f"the size schedule is written SIZE@EPOCH,SIZE@EPOCH, as in 40@0,52@10, with sizes from 32 up; "
                f"got {text!r}"
            )
        pairs.append((int(size), int(first)))
    if any(later[1] <= earlier[1] for earlier, later in itertools.pairwise(pairs)):
        raise ValueError(f"the epochs of the size schedule must rise, got {text!r}")
    return pairs


HELP: dict[str, str] = {
    "output": "folder of the run: checkpoints, metrics.jsonl, curves.png",
    "dataset": "what DATA holds; auto looks for the files of Fashion-MNIST",
    "model": "the architecture",
    "weights": "start from a tag of the catalogue or a file",
    "num_classes": "checked against the data set",
    "drop_rate": "dropout before the linear layer (default: the model's own)",
    "freeze": "train the head alone; the backbone's BatchNorm statistics stay too",
    "freeze_bn": "BatchNorm keeps its statistics and normalises by them",
    "epochs": "length of the run",
    "batch_size": "images per step and rank",
    "accumulate": "steps whose gradients are averaged before the optimiser acts",
    "seed": "decides the initial weights, the order, the augmentation, the dropout",
    "hold_out": "training images kept for validation, in place of the folder val",
    "eval_every": "epochs between validations",
    "size": "side of the training images, in pixels",
    "size_schedule": "smaller images first: SIZE@EPOCH,SIZE@EPOCH, epochs counted from 0, as in 40@0,52@10",
    "crop": "resized: a random part of the image; pad: resize, pad and cut at random",
    "min_scale": "of resized: the smallest part, as a share of the area",
    "pad": "of pad: the margin on each side, as a share of the size",
    "flip": "probability of a horizontal flip",
    "erase": "probability of erasing a random rectangle",
    "erase_max": "the largest such rectangle, as a share of the area",
    "auto_augment": "RandAugment or TrivialAugment",
    "mixup": "alpha of MixUp, 0 for none; with --cutmix each batch takes one of the two",
    "cutmix": "alpha of CutMix, 0 for none",
    "label_smoothing": "share of the target spread over all classes",
    "mean": "of each colour (default: the data set's)",
    "std": "of each colour (default: the data set's)",
    "eval_size": "side of the images in validation (default: --size)",
    "crop_ratio": "share of the resized side that validation crops from the centre",
    "optimizer": "sgd has Nesterov momentum",
    "lr": "for a global batch of --lr-batch images; scaled linearly with the global batch",
    "lr_batch": "the global batch to which --lr belongs",
    "min_lr": "where the cosine ends, as a share of the learning rate",
    "warmup": "epochs of linear warm-up",
    "momentum": "of sgd",
    "weight_decay": "L2 penalty (sgd), decoupled decay (adamw)",
    "norm_decay": "weight decay on normalisation and biases as well",
    "clip": "largest norm of the gradient, 0 for no clipping",
    "ema": "decay per step of a running average of the weights, 0 for none",
    "amp": "mixed precision",
    "channels_last": "memory format; the faster one for these networks",
    "compile": "torch.compile",
    "sync_bn": "BatchNorm statistics over all ranks (CUDA)",
    "device": "cpu, cuda, cuda:1, ... or auto",
    "workers": "processes that read images, per rank",
    "skip_bad_images": "pass over images that cannot be read, and count them",
    "resume": "auto: go on from the output folder's checkpoint if there is one; or a checkpoint",
    "save_every": "steps between checkpoints within an epoch, 0 for none",
}
"""A line on every field, for the command line."""
