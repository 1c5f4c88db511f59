"""Write the result of a finished run to a folder for ``from_pretrained``, timm and the Hugging Face Hub."""

from __future__ import annotations

import logging
from pathlib import Path

from ..factory import create_model
from ..utils.errors import TrainingError
from ..utils.text import escape_bytes, reason
from ..weights.catalog import WeightsRecord
from ..weights.files import read_file, read_pickled
from ..weights.folder import CARD, save_pretrained
from .checkpoint import BEST, FINAL

logger = logging.getLogger(__name__)

FOLDER = "pretrained"
"""Its name within the run's folder."""


def write_pretrained(run: Path, initial: WeightsRecord | None, *, again: bool) -> None:
    """Write the weights of a run's best epoch to its folder ``pretrained``, with a model card of what was measured.

    Without validation these are the weights of the last epoch. ``initial`` is the record of those that it started from;
    a complete folder is replaced only ``again``.

    Raises:
        TrainingError: the folder cannot be written.
        WeightsError: the file with the weights cannot be read.
    """
    folder = run / FOLDER
    if (folder / CARD).exists() and not again:
        return
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
        (folder / CARD).unlink(missing_ok=True)
        save_pretrained(model, folder, labels=labels, notes=notes)
    except OSError as error:
        raise TrainingError(f"{folder} could not be written: {reason(error)}; the weights are in {path}") from error
    logger.info("the model with its classes and preprocessing: %s", folder)
