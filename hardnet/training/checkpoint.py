"""Training checkpoints: content, atomic writing, reading without running code, validation, and resuming from them."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from ..images.preprocess import Preprocessing
from ..models.network import HarDNet
from ..utils.errors import TrainingError, WeightsError
from ..utils.files import write_atomically
from ..utils.version import __version__
from ..weights.reading import read_file, read_pickled
from .distributed import Ranks
from .options import TrainOptions

CHECKPOINT = "checkpoint.pt"
"""The file from which a run goes on."""
FORMAT = 2

# Options that may change when a run is resumed. The parts of the batch are compared as the global batch.
_FREE = {
    "data", "output", "workers", "resume", "save_every", "device", "batch_size", "accumulate", "eval_every",
    "compile", "channels_last", "save_pretrained",
}  # fmt: skip


@dataclass
class Position:
    """The position of a run, and the running sums of the epoch it is in. The sums are those of one rank."""

    epoch: int = 0
    """How many epochs are complete."""
    step: int = 0
    """How many steps of the next one are done."""
    loss_sum: float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    best: float | None = None
    """The lowest top-1 error of a validation so far, in per cent."""


@dataclass(frozen=True)
class Parts:
    """The objects of a run that have a state."""

    model: HarDNet
    ema: AveragedModel | None
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler  # type: ignore[name-defined,unused-ignore]

    def state(self) -> dict[str, Any]:
        """Return their state dicts."""
        return {
            "model": self.model.state_dict(),
            "model_ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Load their state dicts."""
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["model_ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])


@dataclass(frozen=True)
class Facts:
    """What a run derives from its options and data."""

    classes: Sequence[str]
    preprocessing: Preprocessing
    images: int
    """In the training set."""
    global_batch: int
    """Images per step of the optimiser, on all ranks."""
    steps_per_epoch: int

    def counts(self) -> dict[str, int]:
        """Return the numbers that must be the same when a run is resumed, under their names in messages."""
        return {
            "classes": len(self.classes),
            "training images": self.images,
            "images per global batch": self.global_batch,
        }


def checkpoint_content(parts: Parts, position: Position, options: TrainOptions, facts: Facts) -> dict[str, Any]:
    """Return what a run needs to go on; classes and preprocessing make it usable as weights as well.

    The state of random generators is the seed (among the options) and the position, see :mod:`.seeds`.
    """
    return {
        "format": FORMAT,
        **parts.state(),
        "progress": dataclasses.asdict(position),
        "facts": facts.counts(),
        **_description(options, facts),
    }


def final_content(parts: Parts, options: TrainOptions, facts: Facts, numbers: dict[str, Any]) -> dict[str, Any]:
    """Return what the trained model needs to be used: its weights, averaged ones where there are, and their record."""
    model = parts.model if parts.ema is None else parts.ema.module
    return {
        "model": model.state_dict(),
        "averaged": parts.ema is not None,
        "metrics": numbers,
        **_description(options, facts),
    }


def _description(options: TrainOptions, facts: Facts) -> dict[str, Any]:
    return {
        "architecture": options.model,
        "classes": list(facts.classes),
        "preprocessing": facts.preprocessing.to_dict(),
        "options": options.asdict(),
        "versions": {"hardnet": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
    }


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, so that ``path`` is the previous or the complete new one at any time.

    Raises:
        TrainingError: it could not be written, for instance to a full disk; the previous file is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as file:
            torch.save(dict(content), file)
    except (OSError, RuntimeError) as error:  # torch's writer turns an OSError into a RuntimeError
        kept = "the previous one is untouched" if path.exists() else "there is no previous one"
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause).splitlines()[0]
        raise TrainingError(f"the checkpoint {path} could not be written: {reason}; {kept}") from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run, with torch's restricted loader.

    Raises:
        TrainingError: there is none, it is damaged, or it is no checkpoint of a run.
    """
    if not path.exists():
        raise TrainingError(f"{path}: no such checkpoint")
    try:
        content = read_pickled(read_file(path), str(path))
    except WeightsError as error:
        raise TrainingError(f"{path}: is damaged, or no checkpoint: {error}") from error
    if not isinstance(content, dict) or "optimizer" not in content:
        raise TrainingError(
            f"{path}: is no checkpoint of a training run (it has no optimiser state); start from its weights with "
            "--weights instead of --resume"
        )
    if content.get("format", FORMAT) != FORMAT:
        raise TrainingError(f"{path}: has format {content['format']}, this version reads format {FORMAT}")
    return content


def find_checkpoint(options: TrainOptions, ranks: Ranks) -> Path | None:
    """Return the checkpoint to resume from; None starts a new run.

    Raises:
        TrainingError: the output folder holds a run and ``resume`` is not set, or only some ranks see it.
    """
    own = Path(options.output).expanduser() / CHECKPOINT
    given = None if options.resume in ("", "auto") else Path(options.resume).expanduser()
    exists = own.exists()
    seen, missed = ranks.any([exists, not exists])
    if seen and missed:
        raise TrainingError(f"{own} is there for some ranks only: the output folder must be shared by all machines")
    if exists and options.resume != "auto" and given != own:
        raise TrainingError(f"{own.parent} holds a run already: go on with --resume auto, or name another --output")
    return given or (own if exists else None)


def restore(path: Path, parts: Parts, options: TrainOptions, facts: Facts, ranks: Ranks) -> Position:
    """Load a checkpoint into the parts and return its position.

    Raises:
        TrainingError: it cannot be read, has the wrong structure, or is another run's.
    """
    content = load(path)
    wrong = _wrong_structure(content, checkpoint_content(parts, Position(), options, facts), "")
    if isinstance(content.get("options"), dict) and isinstance(content.get("facts"), dict):
        _check_same_run(content, options, facts, path)
    wrong = wrong or _wrong_position(content, options, facts)
    if wrong:
        raise TrainingError(f"{path}: is not a valid training checkpoint: {wrong}")
    try:
        parts.load(content)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TrainingError(f"{path}: is not a valid training checkpoint: {error}") from error
    position = Position(**content["progress"])
    if not ranks.first:  # rank 0 goes on from the sums over all ranks
        position.loss_sum, position.skipped = 0.0, 0
    return position


def _check_same_run(content: Mapping[str, Any], options: TrainOptions, facts: Facts, path: Path) -> None:
    """Refuse a checkpoint of another model, other classes or other options, naming both values."""
    theirs, ours = content["options"], options.asdict()
    if theirs.get("model") != ours["model"]:
        raise TrainingError(f"{path}: is a checkpoint of {theirs.get('model')}, this run trains {ours['model']}")
    for name, value in facts.counts().items():
        if content["facts"].get(name) != value:
            raise TrainingError(f"{path}: was made with {content['facts'].get(name)} {name}, this run has {value}")
    changed = [name for name in ours if name not in _FREE and theirs.get(name) != ours[name]]
    if changed:
        named = ", ".join(f"{name} {theirs.get(name)!r} (now {ours[name]!r})" for name in changed)
        raise TrainingError(f"{path}: was made with {named}; resume with the same options, or start another run")


def _wrong_structure(theirs: object, ours: object, where: str) -> str:
    """Compare keys, types and tensor shapes with what this run would write; return the first difference, or ""."""
    if where in (".options", ".facts") and isinstance(theirs, dict):  # their values are compared one by one
        return ""
    if where == ".optimizer.state":  # empty in a new run
        plain = isinstance(theirs, dict) and all(isinstance(value, dict) for value in theirs.values())
        return "" if plain else f"{where[1:]} is no dictionary of dictionaries"
    if isinstance(ours, dict) and isinstance(theirs, dict):
        odd = sorted(map(str, ours.keys() ^ theirs.keys()))
        if odd:
            return f"missing or unknown entries in {where[1:] or 'the file'}: {', '.join(odd[:3])}"
        return next(filter(None, (_wrong_structure(theirs[key], ours[key], f"{where}.{key}") for key in ours)), "")
    if isinstance(ours, list) and isinstance(theirs, list) and where.startswith((".optimizer", ".scheduler")):
        if len(ours) != len(theirs):
            return f"{where[1:]} has {len(theirs)} entries, not {len(ours)}"
        pairs = enumerate(zip(theirs, ours, strict=True))
        return next(filter(None, (_wrong_structure(one, two, f"{where}.{i}") for i, (one, two) in pairs)), "")
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        same = ours.shape == theirs.shape and ours.dtype == theirs.dtype
        return "" if same else f"{where[1:]} is {theirs.dtype} {tuple(theirs.shape)}, not {tuple(ours.shape)}"
    numbers = (int, float, type(None)) if where.startswith((".progress", ".scheduler", ".optimizer")) else ()
    if type(theirs) is type(ours) or (numbers and isinstance(theirs, numbers) and isinstance(ours, numbers)):
        return ""
    return f"{where[1:]} is {type(theirs).__name__}, not {type(ours).__name__}"


def _wrong_position(content: Mapping[str, Any], options: TrainOptions, facts: Facts) -> str:
    """Say what is impossible about a position whose structure is right; "" where it is possible."""
    progress, steps = Position(**content["progress"]), facts.steps_per_epoch
    epoch, step = progress.epoch, progress.step
    counts = (epoch, step, progress.skipped)
    if not all(type(count) is int and count >= 0 for count in counts):
        return f"epoch, step and skipped must be integers >= 0, got {counts}"
    if epoch > options.epochs or step > steps or (epoch == options.epochs and step):
        return f"epoch {epoch}, step {step} lies outside {options.epochs} epochs of {steps} steps"
    if content["scheduler"].get("last_epoch") != epoch * steps + step:
        return f"epoch {epoch}, step {step} does not agree with the learning-rate schedule"
    if not all(type(x) in (int, float) and math.isfinite(x) for x in (progress.loss_sum, progress.seconds)):
        return "loss_sum and seconds must be finite"
    return ""
