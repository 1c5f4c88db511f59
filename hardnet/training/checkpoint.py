"""The files of a run: checkpoints, written atomically and read without running code, and the result."""

import dataclasses
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..factory import create_model
from ..utils.errors import TrainingError, WeightsError
from ..utils.files import write_atomically
from ..utils.text import escape_bytes, reason
from ..utils.version import __version__
from ..weights.catalog import WeightsRecord
from ..weights.files import read_file, read_pickled
from ..weights.folder import save_pretrained
from .metrics import METRICS, read_metrics
from .options import TrainOptions

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"  # the training state that --resume continues from
FINAL, BEST = "model.pt", "best.pt"  # weights of the last epoch and of the best validation, averaged if ``ema`` is on
OPTIONS = "options.json"  # every option of the run; usable as a recipe
VALIDATION = "validation_images.txt"  # the images for validation as paths within the data set, a line each
FOLDER = "pretrained"  # the result as a folder of ``save_pretrained``

# Options that may change when a run is resumed. The parts of the batch are compared as the global batch.
_FREE = {
    "data", "output", "workers", "resume", "save_every", "device", "batch_size", "accumulate", "eval_every",
    "compile", "save_pretrained", "tensorboard", "patience",
}  # fmt: skip


@dataclass
class RunProgress:
    """Position of a run, and sums over all ranks of the epoch it is in."""

    epoch: int = 0  # complete ones
    step: int = 0  # steps of the next epoch that are done
    loss_sum: float = 0.0  # of the mean losses of these steps
    seconds: float = 0.0
    skipped: int = 0
    best: float | None = None  # lowest top-1 error of a validation so far, in per cent
    best_epoch: int = 0  # epoch of that validation, from 1; the last of several


def common_content(options: TrainOptions, classes: Sequence[str], images: int, global_batch: int) -> dict[str, Any]:
    """Return what every file of a run holds beside its weights, so that they can be used without the run.

    ``images`` is the number of training images, ``global_batch`` that of one step of the optimiser on all ranks.
    """
    return {
        "architecture": options.model,
        "classes": list(classes),
        "preprocessing": options.preprocessing().to_dict(),
        "options": json.loads(json.dumps(dataclasses.asdict(options))),  # with lists for tuples
        "counts": {"classes": len(classes), "training images": images, "images per global batch": global_batch},
        "versions": {"hardnet": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
    }


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, so that ``path`` is the previous or the complete new one at any time."""
    try:
        with write_atomically(path) as file:
            torch.save(dict(content), file)
    except (OSError, RuntimeError) as error:  # torch's writer turns an OSError into a RuntimeError
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise TrainingError(f"{path} could not be written, and is as before: {reason(cause)}") from error


def find_checkpoint(options: TrainOptions) -> Path | None:
    """Return the checkpoint to resume from; None starts a new run. A folder that holds a run is a ValueError."""
    folder = Path(options.output).expanduser()
    epochs = read_metrics(folder / METRICS)
    if options.resume == "auto":
        return folder / CHECKPOINT if (folder / CHECKPOINT).exists() else None
    if epochs or (folder / FINAL).exists() or (folder / BEST).exists():
        raise ValueError(f"{folder} holds a run already: go on with --resume auto, or name another --output")
    return None


def restore(path: Path, parts: Mapping[str, Any], description: Mapping[str, Any]) -> RunProgress:
    """Load a checkpoint of the run that ``description`` is of into its parts, and return its progress."""
    try:
        content = read_pickled(read_file(path))
        previous, current = (values["options"] | values["counts"] for values in (content, description))
        changed = [name for name in current if name not in _FREE and previous.get(name) != current[name]]
        if not changed:
            for name, part in parts.items():
                part.load_state_dict(content[name])
            return RunProgress(**content["progress"])
    except WeightsError as error:
        raise TrainingError(f"{path}: {error}") from error
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TrainingError(f"{path}: is not a valid training checkpoint: {error!r}") from error
    values = ", ".join(f"{name} {previous.get(name)!r} (now {current[name]!r})" for name in changed)
    raise TrainingError(f"{path}: was made with {values}; resume with the same, or start another run")


def write_pretrained(run: Path, initial: WeightsRecord | None) -> None:
    """Write the weights of a run's best epoch to its folder ``pretrained``, with a model card of what was measured.

    Without validation these are the weights of the last epoch. ``initial`` is the record of those that it started from.
    """
    folder = run / FOLDER
    path = next(path for path in (run / BEST, run / FINAL) if path.exists())
    content = read_pickled(read_file(path))
    options, metrics, averaged = content["options"], content["metrics"], content["averaged"]
    kind = f"a running average of the weights (decay {options['ema']:g} per step)" if averaged else "the weights"
    notes = [f"Trained with `hardnet train`: {kind} at the end of epoch {metrics['epoch']}, seed {options['seed']}."]
    prefix = "ema_val_" if averaged else "val_"
    texts = {"top1_error": "top-1 error {:.2f} %", "top5_error": "top-5 error {:.2f} %", "loss": "cross-entropy {:.4f}"}
    measured = [text.format(metrics[prefix + name]) for name, text in texts.items() if prefix + name in metrics]
    if measured:
        notes.append(f"Measured on the validation images of the run: {', '.join(measured)}.")
    model = create_model(content["architecture"], weights=path)
    model.weights_record = initial
    labels = [escape_bytes(name) for name in content["classes"]]
    try:
        save_pretrained(model, folder, labels=labels, notes=notes)
    except OSError as error:
        raise TrainingError(f"{folder} could not be written: {reason(error)}; the weights are in {path}") from error
    logger.info("the model with its classes and preprocessing: %s", folder)
