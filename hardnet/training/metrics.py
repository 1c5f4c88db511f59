"""Record a run in metrics.jsonl; draw its curves and a confusion matrix."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.errors import TrainingError
from ..utils.files import write_atomically, writing

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
CURVES = "curves.png"
FEW_CLASSES = 30  # counts and names of so many fit into the cells of a confusion matrix


def write_metrics(folder: Path, numbers: dict[str, Any]) -> None:
    """Add an epoch to metrics.jsonl, in place of itself and later ones, which a resumed run repeats."""
    path = folder / METRICS
    epochs = [earlier for earlier in read_metrics(path) if earlier["epoch"] < numbers["epoch"]]
    with writing(path), write_atomically(path) as file:
        file.write("".join(json.dumps(epoch) + "\n" for epoch in [*epochs, numbers]).encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the epochs of a metrics.jsonl, [] if there is none."""
    if not path.exists():
        return []
    try:
        epochs = [json.loads(line) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError, RecursionError):
        epochs = [None]
    if not all(isinstance(numbers, dict) and type(numbers.get("epoch")) is int for numbers in epochs):
        raise TrainingError(f"{path} is not the record of a run: move it away, or name another --output")
    return epochs


def draw_curves(folder: Path) -> None:
    """Draw curves.png from metrics.jsonl; the log says if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        logger.info("no %s: matplotlib is not installed (pip install matplotlib)", CURVES)
        return
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
    figure.savefig(folder / CURVES, dpi=120)


def draw_confusion(path: Path, title: str, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """Draw counts to a file, one row per true class; colours are shares of a row's images."""
    from matplotlib.figure import Figure  # type: ignore[import-not-found,unused-ignore]

    side = min(3 + 0.4 * len(classes), 12)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow([[(count / max(sum(row), 1)) ** 0.4 for count in row] for row in counts], cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= FEW_CLASSES:
        for row, line in enumerate(counts):
            for column, count in enumerate(line):
                if count:
                    colour = "white" if count > 0.3 * sum(line) else "black"
                    axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right")
        axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    right = sum(row[number] for number, row in enumerate(counts))
    axes.set_title(f"{title}: {right:,} of {sum(map(sum, counts)):,} correct", fontsize=11)
    with writing(path), write_atomically(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=120)
