"""The confusion matrix of an evaluation as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # type: ignore[import-not-found,unused-ignore]

_MOST_NUMBERED = 30  # classes whose counts and names fit into the cells


def draw_confusion(title: str, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Figure:
    """Draw counts, one row per true class; colours are shares of a row's images."""
    from matplotlib.figure import Figure

    side = min(3 + 0.4 * len(classes), 12)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow([[(count / max(sum(row), 1)) ** 0.4 for count in row] for row in counts], cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= _MOST_NUMBERED:
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
    return figure
