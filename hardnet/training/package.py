"""Write the result of a finished run to a folder for ``from_pretrained``, timm and the Hugging Face Hub."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..models.network import HarDNet
from ..utils.errors import TrainingError
from ..utils.text import escape_bytes, reason
from ..weights.files import read_file, read_pickled
from ..weights.folder import CARD, check_categories, save_pretrained
from .checkpoint import BEST, FINAL, RunDescription

logger = logging.getLogger(__name__)

FOLDER = "pretrained"
"""Its name within the run's folder."""


def write_pretrained(run: Path, trained: HarDNet, description: RunDescription, *, again: bool) -> None:
    """Write the weights of a run's best epoch to its folder ``pretrained``, with a model card of what was measured.

    Without validation these are the weights of the last epoch.

    Args:
        run: the run's folder with the weights.
        trained: the run's model; its architecture and the record of its initial weights are used.
        description: of the run: classes and preprocessing.
        again: replace a complete folder, with its model card; False leaves it as it is.

    Raises:
        TrainingError: the folder cannot be written.
        WeightsError: the file with the weights cannot be read.
    """
    folder = run / FOLDER
    if (folder / CARD).exists() and not again:
        return
    path = next(path for path in (run / BEST, run / FINAL) if path.exists())
    content = read_pickled(read_file(path))
    model = HarDNet(trained.config, num_classes=len(description.classes))
    model.load_state_dict(content["model"])
    model.weights_record = trained.weights_record
    try:
        (folder / CARD).unlink(missing_ok=True)
        labels = saved_labels(description.classes)
        save_pretrained(model, folder, labels=labels, preprocessing=description.preprocessing, notes=_notes(content))
    except OSError as error:
        raise TrainingError(f"{folder} could not be written: {reason(error)}; the weights are in {path}") from error
    logger.info("the model with its classes and preprocessing: %s", folder)


def saved_labels(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes as a saved model has them: bytes that are not UTF-8 are escaped.

    Raises:
        ValueError: a name is empty.
    """
    return check_categories([escape_bytes(name) for name in classes])


def _notes(content: dict[str, Any]) -> list[str]:
    """Return how the weights were trained, and the errors of their validation if there was one."""
    options, metrics, averaged = content["options"], content["metrics"], content["averaged"]
    kind = f"a running average of the weights (decay {options['ema']:g} per step)" if averaged else "the weights"
    notes = [f"Trained with `hardnet train`: {kind} at the end of epoch {metrics['epoch']}, seed {options['seed']}."]
    prefix = "ema_val_" if averaged else "val_"
    texts = {"top1_error": "top-1 error {:.2f} %", "top5_error": "top-5 error {:.2f} %", "loss": "cross-entropy {:.4f}"}
    measured = [text.format(metrics[prefix + name]) for name, text in texts.items() if prefix + name in metrics]
    if measured:
        notes.append(f"Measured on the validation images of the run: {', '.join(measured)}.")
    return notes
