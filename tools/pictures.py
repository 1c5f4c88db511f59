"""Draw the pictures of the documentation from the library's own functions and the logs of training.

python -m tools.pictures            # all of them, into docs/pictures
python -m tools.pictures networks.svg  # only this one

Those of the measurements come from ``python -m benchmarks pictures``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from benchmarks.pictures import BLUE, FOLDER, GREEN, GREY, INK, ORANGE, PURPLE, save
from hardnet.models.config import CONFIGS, harmonic_links, kept_layers, layer_width
from hardnet.models.cost import measure_cost
from hardnet.training.confusion import draw_confusion

REPO = Path(__file__).parent.parent
TRAINING = REPO / "docs" / "training"


def harmonic_links_of_a_block() -> Figure:
    """The first block of hardnet68: layers as boxes, an arrow from each layer to those that read it."""
    config = CONFIGS["hardnet68"]
    layers, growth = config.block_layers[0], config.growth_rates[0]
    kept = kept_layers(layers)
    colours = {1: BLUE, 2: ORANGE, 4: PURPLE, 8: "#bf3989"}
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = _canvas(figure, (-0.6, layers + 0.6), (-2.0, 3.1), equal=True)
    for layer in range(layers + 1):
        width = layer_width(layer, growth, config.growth_multiplier) if layer else config.stem_channels[1]
        colour = GREEN if layer in kept else GREY
        axes.add_patch(
            FancyBboxPatch((layer - 0.22, -0.22), 0.44, 0.44, "round,pad=0.04", fc=colour, ec="none", alpha=0.3)
        )
        axes.text(layer, 0, str(layer) if layer else "input", ha="center", va="center", fontsize=11 if layer else 8.5)
        axes.bar(layer, -width / 110, 0.3, -0.4, color=colour, alpha=0.5)
        axes.text(layer, -0.48 - width / 110, str(width), ha="center", va="top", fontsize=9)
        for source in harmonic_links(layer) if layer else ():
            aside = 0.31 - 0.085 * (layer - source).bit_length()  # leave on the right, arrive on the left, long inside
            arrow = FancyArrowPatch(
                (source + aside, 0.27), (layer - aside, 0.27), arrowstyle="-|>", mutation_scale=11, lw=1.6,
                connectionstyle="arc3,rad=-0.62", color=colours[layer - source], gid=f"link-{source}-{layer}",
            )  # fmt: skip
            axes.add_patch(arrow)
    key = [Line2D([], [], color=c, lw=2, marker=">", label=f"n - {n}, if {n} divides n") for n, c in colours.items()]
    axes.legend(
        handles=key, loc="upper left", bbox_to_anchor=(-0.08, 1), frameon=False, title="Layer n reads layer",
        alignment="left",
    )  # fmt: skip
    axes.get_legend().set_in_layout(False)  # it takes no space from the blocks
    axes.add_artist(axes.get_legend())
    kinds = {"part of the output of the block": GREEN, "read inside the block only": GREY}
    patches = [Patch(fc=colour, alpha=0.4, label=text) for text, colour in kinds.items()]
    axes.legend(handles=patches, loc="lower center", frameon=False, ncols=2, title="Bars: output channels of a layer")
    axes.set_title(f"Harmonic links in the first HarDBlock of {config.name}", fontsize=12)
    return figure


def networks() -> Figure:
    """The four networks as rows of stages: output, parameters and multiply-accumulates of each at 224 x 224."""
    costs = [measure_cost(config) for config in CONFIGS.values()]
    colours = {56: BLUE, 28: ORANGE, 14: GREEN, 7: PURPLE}
    columns = max(len(cost.stages) for cost in costs)
    figure = Figure(figsize=(1.6 * columns, 7.6), layout="constrained")
    axes = _canvas(figure, (-0.05, columns), (-0.1, len(costs) + 0.05))
    for row, cost in enumerate(costs):
        top, config = len(costs) - row, CONFIGS[cost.model]
        facts = f"{_short(cost.total.params)} parameters, {_short(cost.total.macs)} MACs, {_short(cost.total.cio)} CIO"
        axes.text(0, top - 0.08, f"{cost.model}: {facts}", fontsize=12, weight="bold")
        for column, stage in enumerate(cost.stages):
            side = stage.output_shape[-1] if len(stage.output_shape) == 3 else 0
            colour = colours.get(side, GREY)
            corner, style = (column + 0.03, top - 0.86), {"fc": colour, "ec": colour, "alpha": 0.22}
            axes.add_patch(FancyBboxPatch(corner, 0.86, 0.68, "round,pad=0.02", **style))
            shape = " x ".join(map(str, stage.output_shape))
            lines = [shape, f"{_short(stage.params)} parameters", f"{_short(stage.macs)} MACs"]
            if side and column:
                lines.insert(0, f"{config.block_layers[column - 1]} layers, k = {config.growth_rates[column - 1]}")
            axes.text(column + 0.46, top - 0.24, stage.name, ha="center", va="top", weight="bold")
            axes.text(column + 0.46, top - 0.39, "\n".join(lines), ha="center", va="top", fontsize=9, linespacing=1.45)
    key = [Patch(fc=colour, alpha=0.3, label=f"{side} x {side}") for side, colour in colours.items()]
    key.append(Patch(fc=GREY, alpha=0.3, label="classes"))
    title = (
        "Pixels of the output of a stage, for one image of 224 x 224. MACs: multiply-accumulates. CIO: memory traffic"
    )
    axes.legend(handles=key, loc="lower center", bbox_to_anchor=(0.5, -0.05), ncols=5, frameon=False, title=title)
    return figure


def _short(number: float) -> str:
    """Round to two or three digits: 17.6 M, 4.3 G, 450 k."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= factor:
            return f"{number / factor:.1f}{unit}" if number < 99.5 * factor else f"{number / factor:.0f}{unit}"
    return f"{number:.0f}"


def training_curves() -> Figure:
    """Loss and held-out error over the epochs of the runs that made the shipped checkpoint."""
    runs = [_lines(TRAINING / f"fashion-mnist-{number}.jsonl") for number in (1, 2, 3)]
    starts = [0, *accumulate(map(len, runs))][: len(runs)]
    epochs = [line | {"epoch": line["epoch"] + start} for run, start in zip(runs, starts, strict=True) for line in run]
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name, label, colour in (
        (left, "train_loss", "training loss (nats, smoothed targets)", BLUE),
        (right, "val_top1_error", "last weights", BLUE),
        (right, "ema_val_top1_error", "averaged weights", ORANGE),
    ):
        known = [(line["epoch"], line[name]) for line in epochs if line.get(name) is not None]
        axes.plot(*zip(*known, strict=True), marker=".", color=colour, label=label)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        for number, start in enumerate(starts, 1):
            axes.axvline(start + 0.5, color=INK, lw=0.8, ls=":")
            axes.text(start + 0.5, 1.01, f"run {number}", transform=axes.get_xaxis_transform(), fontsize=8.5)
    left.set_ylabel("training loss (nats, smoothed targets)")
    right.set_ylabel("top-1 error, held-out images (%, log scale)")
    right.set_yscale("log")
    right.set_yticks((5, 10, 20, 50, 100), ("5", "10", "20", "50", "100"))
    right.minorticks_off()
    right.legend(loc="center right", fontsize=9)
    return figure


def confusions() -> Figure:
    """The confusion matrix of the shipped checkpoint on the test images of Fashion-MNIST."""
    [row] = json.loads((TRAINING / "fashion-mnist-confusions.json").read_text(encoding="utf-8"))
    return draw_confusion(f"{row['model']} {row['weights']}", row["classes"], row["confusion"])


PICTURES: dict[str, Callable[[], Figure]] = {
    "harmonic_links.png": harmonic_links_of_a_block,
    "networks.svg": networks,
    "fashion_mnist_curves.svg": training_curves,
    "fashion_mnist_confusions.svg": confusions,
}


def _canvas(figure: Figure, across: tuple[float, float], upwards: tuple[float, float], equal: bool = False) -> Axes:
    axes = figure.subplots()
    axes.set(xlim=across, ylim=upwards, aspect="equal" if equal else "auto")
    axes.axis("off")
    return axes


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Draw the pictures named on the command line, or all."""
    for name in sys.argv[1:] or PICTURES:
        save(PICTURES[name], FOLDER / name)


if __name__ == "__main__":
    main()
