"""What of a run is kept: its position, the content of its checkpoints, and how it is taken up again."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from ..images.preprocess import Preprocessing
from ..models.network import HarDNet
from . import checkpoint_file as checkpoints
from .distributed import Ranks
from .errors import TrainingError
from .options import TrainOptions


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

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch, self.step, self.loss_sum, self.seconds, self.skipped = self.epoch + 1, 0, 0.0, 0.0, 0


@dataclass(frozen=True)
class Parts:
    """Everything of a run that learns."""

    model: HarDNet
    ema: AveragedModel | None
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler  # type: ignore[name-defined,unused-ignore]


def checkpoint_content(
    parts: Parts,
    position: Position,
    options: TrainOptions,
    facts: dict[str, Any],
    ranks: Ranks,
    classes: Sequence[str],
    preprocessing: Preprocessing,
) -> dict[str, Any]:
    """Return what a run needs to go on, sums over all ranks. Every rank must call this; rank 0 writes it.

    The state of random generators is the seed (among the options) and the position, see :mod:`.seeds`.
    """
    total = dataclasses.replace(
        position, loss_sum=ranks.sum(position.loss_sum), skipped=ranks.sum_counts([position.skipped])[0]
    )
    return {
        "format": checkpoints.FORMAT,
        "model": parts.model.state_dict(),
        "model_ema": None if parts.ema is None else parts.ema.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "scheduler": parts.scheduler.state_dict(),
        "scaler": parts.scaler.state_dict(),
        "progress": dataclasses.asdict(total),
        "options": options.asdict(),
        "facts": facts,
        **_record(classes, preprocessing),
        "versions": versions(),
    }


def final_content(
    parts: Parts, options: TrainOptions, classes: Sequence[str], preprocessing: Preprocessing, numbers: dict[str, Any]
) -> dict[str, Any]:
    """Return what the trained model needs to be used: its weights, averaged ones where there are, and their record."""
    model = parts.model if parts.ema is None else parts.ema.module
    return {
        "model": model.state_dict(),
        "architecture": options.model,
        **_record(classes, preprocessing),
        "averaged": parts.ema is not None,
        "options": options.asdict(),
        "metrics": numbers,
        "versions": versions(),
    }


def _record(classes: Sequence[str], preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the entries that `hardnet.weights.checkpoint.find_record` reads."""
    told = {"resize": preprocessing.resize, "crop": preprocessing.crop}
    colours = {"mean": list(preprocessing.mean), "std": list(preprocessing.std)}
    return {"classes": list(classes), "preprocessing": told | colours}


def versions() -> dict[str, str]:
    """Return the versions that a checkpoint was made with."""
    from ..utils.version import __version__

    return {"hardnet": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def find_checkpoint(options: TrainOptions, ranks: Ranks) -> Path | None:
    """Return the checkpoint to go on from, None to start anew.

    Raises:
        TrainingError: the output folder holds a run that was not asked to go on, or only some ranks see it.
    """
    own = Path(options.output).expanduser() / checkpoints.CHECKPOINT
    given = None if options.resume in ("", "auto") else Path(options.resume).expanduser()
    exists = own.exists()
    seen, missed = ranks.any([exists, not exists])
    if seen and missed:
        raise TrainingError(f"{own} is there for some ranks only: the output folder must be shared by all machines")
    if exists and options.resume != "auto" and given != own:
        raise TrainingError(f"{own.parent} holds a run already: go on with --resume auto, or name another --output")
    return given or (own if exists else None)


def restore(path: Path, parts: Parts, options: TrainOptions, facts: dict[str, Any], ranks: Ranks) -> Position:
    """Put the parts into the state of a checkpoint and return its position.

    Raises:
        TrainingError: it cannot be read, or is another run's.
    """
    content = checkpoints.load(path)
    checkpoints.check_fits(content, options, facts, path)
    parts.model.load_state_dict(content["model"])
    if parts.ema is not None:
        parts.ema.load_state_dict(content["model_ema"])
    parts.optimizer.load_state_dict(content["optimizer"])
    parts.scheduler.load_state_dict(content["scheduler"])
    parts.scaler.load_state_dict(content["scaler"])
    position = Position(**content["progress"])
    if not ranks.first:  # rank 0 goes on from the sums over all ranks
        position.loss_sum, position.skipped = 0.0, 0
    return position
