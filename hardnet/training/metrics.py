"""Record a run: metrics.jsonl, TensorBoard where it is installed, a plot of the curves."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ..utils.errors import TrainingError
from ..utils.files import write_atomically

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
CURVES = "curves.png"


class Recorder:
    """Writes one JSON line per epoch, and the same numbers to TensorBoard.

    Args:
        folder: the run's folder.
        epochs: how many are complete; lines of later ones are left out.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        self._path = folder / METRICS
        self._board = _tensorboard(folder)
        self._epochs = [numbers for numbers in read_metrics(self._path) if numbers["epoch"] <= epochs]

    def write(self, numbers: dict[str, Any]) -> None:
        """Add one epoch."""
        self._epochs.append(numbers)
        try:
            with write_atomically(self._path) as file:
                file.write("".join(json.dumps(each) + "\n" for each in self._epochs).encode())
        except OSError as error:
            raise TrainingError(f"{self._path} could not be written: {error.strerror}") from error
        if self._board is not None:
            for name, value in numbers.items():
                if isinstance(value, (int, float)) and name != "epoch":
                    self._board.add_scalar(name, value, numbers["epoch"])

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the epochs of a metrics.jsonl, [] where there is none."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def draw_curves(folder: Path) -> Path | None:
    """Draw curves.png from metrics.jsonl; None where matplotlib is not installed, which the log says."""
    try:
        from matplotlib.figure import Figure  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        logger.info("no %s: matplotlib is not installed (pip install matplotlib)", CURVES)
        return None
    metrics = read_metrics(folder / METRICS)
    figure = Figure(figsize=(9, 6), layout="constrained")  # not pyplot: no window system, no global state
    panels = (
        ("cross-entropy (nats)", {"train_loss": "training", "val_loss": "validation", "ema_val_loss": "averaged"}),
        ("top-1 error (%)", {"val_top1_error": "validation", "ema_val_top1_error": "averaged weights"}),
        ("learning rate", {"lr": ""}),
        ("image size (pixels)", {"size": ""}),
    )
    for axes, (title, lines) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name, label in lines.items():
            points = [(numbers["epoch"], numbers[name]) for numbers in metrics if numbers.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else "")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend()
    path = folder / CURVES
    figure.savefig(path, dpi=120)
    return path


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call,unused-ignore]
