"""The options of a training run: name, default, help text and range of each, as dataclass fields."""

import dataclasses
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ..images.preprocess import Preprocessing
from ..utils.text import reason

_TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text", tuple: "a list of numbers"}


def _option(text: str, default: Any = dataclasses.MISSING, *, low: float = -math.inf, high: float = math.inf,
            choices: tuple[str, ...] = ()) -> Any:  # fmt: skip
    """Return a field with its help text and the values that are allowed: a closed range, or a choice of words."""
    return dataclasses.field(default=default, metadata={"help": text, "range": (low, high), "choices": choices})


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run. Sizes in pixels, durations in epochs unless a name says otherwise.

    The defaults are the authors' recipe for ImageNet. ``hardnet train --help`` describes every field.

    Raises:
        ValueError: a value is of another type or out of its range, or two exclude each other.
    """

    data: str = _option('a folder with train/CLASS/image and val/CLASS/image, or CLASS/image, or "fashion-mnist"')
    output: str = _option("folder of the run: checkpoints, metrics.jsonl, curves.png")
    model: str = _option("the architecture", "hardnet39ds")
    weights: str | None = _option("initial weights: a tag of the catalogue or a file", None)
    epochs: int = _option("number of epochs", 150, low=1, high=10**6)
    patience: int = _option("stop after N epochs without a better one, 0 for never", 0, low=0, high=10**6)
    batch_size: int = _option("images per step and rank", 256, low=1, high=10**6)
    lr: float = _option("learning rate for --lr-batch images; linear in the global batch", 0.05, low=0, high=10**38)
    size: int = _option("side of the training images, in pixels", 224, low=32, high=4096)
    device: str = _option("cpu, cuda, cuda:1, ... or auto", "auto")
    resume: str = _option("auto: continue the run in the output folder, if any", "none", choices=("none", "auto"))

    val_fraction: float = _option("share of each class held out if DATA has no folder val", 0.2, low=0, high=0.9)
    skip_bad_images: bool = _option("skip images that cannot be read, and count them", False)
    cache_size: int = _option("shrink images once, to this shorter side, in OUTPUT/cache", 0, low=0, high=10**4)
    workers: int = _option("data-loading processes per rank, at most one per processor", 4, low=0, high=1024)
    crop_ratio: float = _option("side of validation's central crop over the resized side", 0.875, low=0.01, high=1)
    mean: tuple[float, float, float] = _option("mean of each colour in [0, 1]", Preprocessing.mean)
    std: tuple[float, float, float] = _option("standard deviation of each colour in [0, 1]", Preprocessing.std)
    class_weights: str = _option("weigh the loss by 1 / images of the class", "none", choices=("none", "balanced"))
    eval_every: int = _option("validate after every so many epochs", 1, low=1, high=10**6)

    crop: str = _option("RandomResizedCrop, or resize, pad and crop at random", "resized", choices=("resized", "pad"))
    min_scale: float = _option("smallest crop of --crop resized, as a share of the area", 0.08, low=1e-6, high=1)
    pad: float = _option("margin of --crop pad on each side, as a share of the size", 0.1, low=0, high=1)
    flip: float = _option("probability of a horizontal flip", 0.5, low=0, high=1)
    erase: float = _option("probability of erasing a random rectangle", 0.0, low=0, high=1)
    erase_max: float = _option("largest erased rectangle, as a share of the area", 0.33, low=0.02, high=1)
    auto_augment: str = _option("RandAugment or TrivialAugment", "none", choices=("none", "rand", "trivial"))
    mixup: float = _option("alpha of MixUp, 0 for none; with --cutmix, either of the two", 0.0, low=0, high=100)
    cutmix: float = _option("alpha of CutMix, 0 for none", 0.0, low=0, high=100)
    size_schedule: str = _option("smaller images first: SIZE@EPOCH,SIZE@EPOCH from epoch 0, as in 40@0,52@10", "")

    label_smoothing: float = _option("share of the target spread over all classes", 0.0, low=0, high=0.999)
    teacher: str | None = _option("distil from MODEL, MODEL:TAG, MODEL:FILE or a run's model.pt; A,B: the mean", None)
    teacher_share: float = _option("weight of the teacher's probabilities in the loss", 0.5, low=0, high=1)
    temperature: float = _option("softmax temperature of the distillation", 1.0, low=0.1, high=100)
    optimizer: str = _option("sgd has Nesterov momentum", "sgd", choices=("sgd", "adamw"))
    lr_batch: int = _option("the global batch to which --lr refers", 256, low=1, high=10**9)
    layer_decay: float = _option("factor of the rate from each stage to the previous one", 1.0, low=0.01, high=1)
    min_lr: float = _option("final learning rate, as a share of the initial one", 0.0, low=0, high=1)
    warmup: float = _option("epochs of linear warm-up", 0.0, low=0, high=10**6)
    momentum: float = _option("momentum of sgd", 0.9, low=0, high=1)
    weight_decay: float = _option("L2 penalty (sgd), decoupled decay (adamw)", 6e-5, low=0, high=10**6)
    norm_decay: bool = _option("apply weight decay to normalisation and biases as well", True)
    clip: float = _option("maximum norm of the gradient, 0 for no clipping", 0.0, low=0, high=10**9)
    accumulate: int = _option("accumulate gradients over N batches per optimiser step", 1, low=1, high=10**6)
    ema: float = _option("decay per step of the averaged weights, less at first; 0 for none", 0.0, low=0, high=1)
    drop_rate: float | None = _option("dropout before the linear layer; none: the model's own", None, low=0, high=0.999)
    freeze: bool = _option("train the head only; the backbone keeps its weights and BatchNorm statistics", False)
    freeze_bn: bool = _option("keep the BatchNorm statistics and normalise by them", False)

    seed: int = _option("seed of initial weights, order, augmentation and dropout", 0, low=0, high=2**62)
    amp: str = _option("mixed precision", "none", choices=("none", "bf16", "fp16"))
    compile: bool = _option("compile the model with torch.compile", False)
    save_every: int = _option("steps between checkpoints within an epoch, 0 for none", 0, low=0, high=10**9)
    save_pretrained: bool = _option("at the end, write OUTPUT/pretrained for from_pretrained, timm and the Hub", False)
    tensorboard: bool = _option("also write the metrics for TensorBoard, to OUTPUT/tensorboard", False)

    def __post_init__(self) -> None:
        """Check types and ranges; lists become tuples, paths text: values come from JSON, Python and the shell."""
        hints = get_type_hints(TrainOptions)
        for name, field in FIELDS.items():
            value, hint = getattr(self, name), hints[name]
            optional = type(None) in get_args(hint)
            kind = get_args(hint)[0] if optional else get_origin(hint) or hint
            if isinstance(value, list):
                value = tuple(value)
            elif isinstance(value, os.PathLike):
                value = os.fspath(value)
            object.__setattr__(self, name, value)  # the dataclass is frozen
            if value is None and optional:
                continue
            if type(value) is not kind and (kind, type(value)) != (float, int):
                raise ValueError(f"{name} must be {_TYPE_NAMES[kind]}, got {value!r:.100}")
            choices, (low, high) = field.metadata["choices"], field.metadata["range"]
            if choices and value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
            if low > -math.inf and not low <= value <= high:
                raise ValueError(f"{name} must lie between {low} and {high}, got {value!r}")
        self.preprocessing()
        if self.freeze and self.weights is None:
            raise ValueError("freeze keeps the backbone as it is: give the weights to start from as well")
        if self.warmup >= self.epochs:
            raise ValueError(f"a warm-up of {self.warmup} epochs leaves nothing of a run of {self.epochs}")
        if self.cache_size and self.cache_size * self.crop_ratio < self.size:
            raise ValueError(f"cache_size {self.cache_size} is less than validation takes: size / crop_ratio")
        smallest = min([self.size, *(size for size, _ in parse_size_schedule(self.size_schedule))])
        if self.batch_size == 1 and smallest < 64 and not (self.freeze or self.freeze_bn):
            raise ValueError(
                f"BatchNorm cannot normalise a single picture of {smallest} pixels, which the network reduces to one "
                "value per channel: --batch-size 2 or more, or --size 64 or more"
            )

    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing of validation."""
        return Preprocessing(round(self.size / self.crop_ratio), self.size, self.mean, self.std)

    def size_at(self, epoch: int) -> int:
        """Return the size of the training images in an epoch, counted from 0."""
        sizes = [size for size, first in parse_size_schedule(self.size_schedule) if epoch >= first]
        return sizes[-1] if sizes else self.size

    @property
    def evaluation(self) -> dict[str, Any]:
        """Keywords of :func:`hardnet.training.evaluate`."""
        return {"batch_size": self.batch_size, "workers": self.workers, "skip_bad_images": self.skip_bad_images}


FIELDS = {field.name: field for field in dataclasses.fields(TrainOptions)}
"""The fields by name; ``metadata`` has "help", "range" and "choices"."""
GROUPS = {
    "data": "what is set most often",
    "val_fraction": "data",
    "crop": "augmentation",
    "label_smoothing": "loss and optimiser",
    "seed": "run",
}
"""Titles of the groups of fields, by the first field of each."""
RECIPES = Path(__file__).with_name("recipes")  # JSON files as :func:`read_recipe` takes them


def read_recipe(recipe: str) -> list[dict[str, Any]]:
    """Return the options of each stage of a recipe, given by its name in the library or by the path of a JSON file.

    The file holds fields of TrainOptions, or a list of such objects for runs that follow each other.
    """
    path = next((path for path in (RECIPES / f"{recipe}.json", Path(recipe).expanduser()) if path.is_file()), None)
    if path is None:
        names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.json")))
        raise ValueError(f"recipe {recipe!r} is neither a file nor one of {names}")
    try:
        options = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"recipe {path} cannot be read as JSON: {reason(error)}") from None
    stages = options if isinstance(options, list) and options else [options]
    if not all(isinstance(stage, dict) for stage in stages):
        raise ValueError(f"recipe {path} must hold an object, or a list of objects")
    if unknown := sorted(set().union(*stages).difference(FIELDS)):
        raise ValueError(f"recipe {path} has unknown options: {', '.join(unknown)}")
    # Later stages have the options of the first, unless they change them.
    return [{**stages[0], **stage} for stage in stages]


def parse_size_schedule(text: str) -> list[tuple[int, int]]:
    """Turn "40@0,52@10" into [(40, 0), (52, 10)]: pairs of a size and the epoch from which it holds."""
    pairs = [(int(size), int(first)) for size, first in re.findall(r"(\d+)@(\d+)", text)]
    epochs = [first for _, first in pairs]
    plain = ",".join(f"{size}@{first}" for size, first in pairs)
    if plain != text.replace(" ", "") or epochs != sorted(set(epochs)) or any(size < 32 for size, _ in pairs):
        raise ValueError(f"a size schedule is SIZE@EPOCH,... with sizes from 32 and rising epochs, got {text!r}")
    return pairs
