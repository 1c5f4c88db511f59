"""The verbs ``train`` and ``evaluate``: their arguments, and what they print."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from ..config import CONFIGS
from ..deploy.cli import add_engine_arguments
from .errors import TrainingError
from .options import CHOICES, TrainOptions

FAILED = 1
"""The exit status of a run that stopped short: loss not a number, checkpoint not writable or not fitting."""

_HELP = {
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
_TYPES: dict[str, Callable[[str], Any]] = {"num_classes": int, "drop_rate": float, "eval_size": int}
_THREE_NUMBERS = ("mean", "std")


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``train``: DATA, and a flag for every field of TrainOptions."""
    parser.description = (
        "Train a model. The defaults are the authors' recipe for ImageNet. For several processes or machines, start "
        "the same command with torchrun: torchrun --nproc-per-node 2 -m hardnet train ..."
    )
    parser.add_argument(
        "data", metavar="DATA", help='a folder with train/CLASS/image and val/CLASS/image, or "fashion-mnist"'
    )
    for field in dataclasses.fields(TrainOptions):
        if field.name == "data":
            continue
        flag, text = "--" + field.name.replace("_", "-"), _HELP[field.name]
        required = field.default is dataclasses.MISSING
        default = None if required else field.default
        if default not in (None, "", False, True):
            text += f" (default: {default})"
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        elif field.name in _THREE_NUMBERS:
            parser.add_argument(flag, type=float, nargs=3, metavar=("R", "G", "B"), help=text)
        else:
            choices = sorted(CONFIGS) if field.name == "model" else CHOICES.get(field.name)
            kind = _TYPES.get(field.name, str if default is None else type(default))
            parser.add_argument(flag, type=kind, default=default, choices=choices, required=required, help=text)
    _add_threads(parser)


def run_train(arguments: argparse.Namespace) -> int:
    """Train as the arguments say and print a line per epoch; return the exit status."""
    from .loop import train

    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(TrainOptions)}
    for name in _THREE_NUMBERS:
        values[name] = None if values[name] is None else tuple(values[name])
    _prepare(arguments)
    try:
        outcome = train(TrainOptions(**values), _print_epoch)
    except TrainingError as error:
        print(f"hardnet: {error}", file=sys.stderr)
        return FAILED
    if _first_rank():
        if outcome.finished:
            print(f"trained {outcome.epochs} epochs: {outcome.folder}")
        else:
            print(
                f"stopped by a signal after {outcome.epochs} complete epochs, the position is saved: go on with "
                "--resume auto"
            )
    return 0


def _print_epoch(numbers: dict[str, Any]) -> None:
    parts = [
        f"epoch {numbers['epoch']}",
        f"size {numbers['size']}",
        f"loss {numbers['train_loss']:.4f}",
        f"{numbers['images_per_second']:.0f} images/s",
    ]
    for prefix, name in (("val", "validation"), ("ema_val", "averaged")):
        if f"{prefix}_top1_error" in numbers:
            errors = f"{numbers[f'{prefix}_top1_error']:.2f} / {numbers[f'{prefix}_top5_error']:.2f}"
            parts.append(f"{name} top-1 / top-5 error {errors}")
    if numbers["skipped_images"]:
        parts.append(f"{numbers['skipped_images']} bad images skipped")
    print(", ".join(parts), flush=True)


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads per rank (default: torch's choice)")


def _prepare(arguments: argparse.Namespace) -> None:
    """Set what belongs to the process, not to the library: threads, and who speaks in the log."""
    # Read by torch with its first large tensor on Linux: huge pages, where the kernel gives them, save the time that
    # goes into millions of small ones being mapped and given back in every epoch.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {arguments.threads}")
        import torch

        torch.set_num_threads(arguments.threads)
    if not _first_rank():
        logging.getLogger("hardnet").setLevel(logging.ERROR)


def _first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evaluate``."""
    parser.description = (
        "Measure top-1 and top-5 errors. Without --model and --weights: of every model and weights of the catalogue "
        "that fit the data set's classes, measured beside reported. Under torchrun the ranks share the images."
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help='a folder with val/CLASS/image or CLASS/image, or "fashion-mnist" (its test images)',
    )
    parser.add_argument("--dataset", choices=CHOICES["dataset"], default="auto", help=_HELP["dataset"])
    parser.add_argument("--split", default="", help="a subfolder of DATA, or train or test of Fashion-MNIST")
    parser.add_argument("--model", nargs="+", choices=sorted(CONFIGS), default=[], help="one or more")
    parser.add_argument("--weights", help="a tag of the catalogue, or a file (default: all of the catalogue)")
    parser.add_argument("--size", type=int, help="side of the centre crop in pixels (default: the weights' own)")
    parser.add_argument("--crop-ratio", type=float, help="crop over resized side (default: the weights' own)")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help=_HELP["workers"] + " (default: %(default)s)")
    parser.add_argument("--device", default="auto", help=_HELP["device"])
    add_engine_arguments(parser)
    parser.add_argument(
        "--calibration",
        metavar="DATA",
        help="images on which int8 is calibrated, a folder as DATA (default: the train split of DATA)",
    )
    parser.add_argument(
        "--channels-last", action=argparse.BooleanOptionalAction, default=True, help=_HELP["channels_last"]
    )
    parser.add_argument("--skip-bad-images", action="store_true", help=_HELP["skip_bad_images"])
    parser.add_argument(
        "--expect",
        type=float,
        nargs="?",
        const=0.1,
        metavar="POINTS",
        help="status 1 where an error differs from the reported one by more percentage points (without a number: 0.1)",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    _add_threads(parser)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate as the arguments say and print the table; return the exit status."""
    from .comparison import EvaluateOptions, as_json, as_table, choose, compare
    from .data import open_evaluation
    from .distributed import connect

    names = [field.name for field in dataclasses.fields(EvaluateOptions)]
    options = EvaluateOptions(**{name: getattr(arguments, name) for name in names})
    source = open_evaluation(arguments.data, arguments.dataset, arguments.split)
    chosen = choose(arguments.model, arguments.weights, len(source.classes))
    _prepare(arguments)
    calibration = None
    if options.precision == "int8":
        calibration = open_evaluation(arguments.calibration or arguments.data, arguments.dataset, "train")
    try:
        with connect(arguments.device) as ranks:
            rows = list(compare(chosen, source, ranks, options, calibration))
    except TrainingError as error:
        print(f"hardnet: {error}", file=sys.stderr)
        return FAILED
    if _first_rank():
        print(as_json(rows) if arguments.format == "json" else as_table(rows))
        for row in rows:
            for message in row.measured.bad:
                print(f"hardnet: skipped {message}", file=sys.stderr)
    if arguments.expect is None:
        return 0
    wrong = [row for row in rows if row.differs(arguments.expect)]
    if _first_rank():
        for row in wrong:
            print(
                f"hardnet: {row.model} {row.weights} differs from what is reported by more than {arguments.expect:g} "
                "percentage points",
                file=sys.stderr,
            )
    return FAILED if wrong else 0
