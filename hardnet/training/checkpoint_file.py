"""Checkpoints of a run: written whole or not at all, read without running code, refused where they do not fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..utils.errors import WeightsError
from ..weights.reading import read_file, read_pickled
from .errors import TrainingError
from .options import TrainOptions

CHECKPOINT = "checkpoint.pt"
"""The file from which a run goes on."""
FORMAT = 1

# What may change between the parts of a run without changing what it computes. The batch's parts are compared as
# the global batch; where the run is written to and how fast it goes is nobody's concern.
_FREE = {
    "data", "output", "workers", "resume", "save_every", "device", "batch_size", "accumulate", "eval_every",
    "compile", "channels_last", "weights",
}  # fmt: skip


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint beside its place and move it there, so that the previous one stays good until then.

    Raises:
        TrainingError: it could not be written, for instance to a full disk; the previous file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for orphan in path.parent.glob(f".{path.name}.*.tmp"):  # of a run that was killed: one process writes at a time
            orphan.unlink(missing_ok=True)
        with temporary.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer turns an OSError into a RuntimeError
        kept = "the previous one is untouched" if path.exists() else "there is no previous one"
        raise TrainingError(f"the checkpoint {path} could not be written: {_reason(error)}; {kept}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    return cause.strerror or str(cause) if isinstance(cause, OSError) else str(error).splitlines()[0]


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
    if not isinstance(content, dict) or "optimizer" not in content or "model" not in content:
        raise TrainingError(
            f"{path}: is no checkpoint of a training run (it has no optimiser state); start from its weights with "
            "--weights instead of --resume"
        )
    if content.get("format") != FORMAT:
        raise TrainingError(f"{path}: has format {content.get('format')}, this version reads format {FORMAT}")
    return content


def check_fits(content: Mapping[str, Any], options: TrainOptions, facts: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint of another model, other classes or other options.

    Args:
        content: the checkpoint.
        options: those of the run that wants to go on from it.
        facts: what the run makes of them, as the checkpoint holds it under "facts": the number of classes, of
            training images, the global batch.
        path: for the message.

    Raises:
        TrainingError: naming both values.
    """
    theirs, ours = content["options"], options.asdict()
    if theirs["model"] != ours["model"]:
        raise TrainingError(f"{path}: is a checkpoint of {theirs['model']}, this run trains {ours['model']}")
    for name, value in facts.items():
        if content["facts"].get(name) != value:
            raise TrainingError(f"{path}: was made with {content['facts'].get(name)} {name}, this run has {value}")
    changed = [name for name in ours if name not in _FREE and theirs.get(name) != ours[name]]
    if changed:
        named = ", ".join(f"{name} {theirs.get(name)!r} (now {ours[name]!r})" for name in changed)
        raise TrainingError(f"{path}: was made with {named}; resume with the same options, or start another run")
