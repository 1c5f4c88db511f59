"""Draw the pictures of the documentation from the library's own functions and the figures in docs/ and benchmarks/.

    python -m tools.make_pictures

A test fails where a committed picture is not what this draws.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import log10
from pathlib import Path
from typing import Any

from hardnet.models.config import CONFIGS, harmonic_links, kept_layers, layer_width
from hardnet.models.cost import measure_cost

from .cost_picture import error_against_cost
from .svg import Drawing, ticks

DOCS = Path(__file__).parent.parent / "docs"
FOLDER = DOCS / "pictures"
LINK_COLOURS = ("first", "second", "third", "fourth", "fifth")


def harmonic_links_of_a_block() -> str:
    """The first block of hardnet68: layers as bars, as wide as they are deep, links as arcs by their length."""
    config = CONFIGS["hardnet68"]
    layers, growth = config.block_layers[0], config.growth_rates[0]
    kept = kept_layers(layers)
    step, left, ground = 92, 60, 250
    drawing = Drawing(left * 2 + step * layers, 400, f"the harmonic links of a HarDBlock of {layers} layers")
    drawing.text(left - 30, 28, f"The first HarDBlock of {config.name}: who reads whom", "title", "start")
    for layer in range(1, layers + 1):
        for number, source in enumerate(harmonic_links(layer)):
            length = layer - source
            x1, x2, high = left + step * source, left + step * layer, 22 + 21 * length
            arc = f"M{x1} {ground - 16} C{x1} {ground - 16 - high} {x2} {ground - 16 - high} {x2} {ground - 16}"
            drawing.path(arc, LINK_COLOURS[number], link=f"{source}-{layer}")
    for layer in range(layers + 1):
        x = left + step * layer
        width = layer_width(layer, growth, config.growth_multiplier) if layer else config.stem_channels[1]
        drawing.rect(x - 15, ground - 16, 30, 32, "third" if layer in kept else "faint", 0.35, layer=layer)
        drawing.text(x, ground + 5, layer if layer else "in")
        drawing.rect(x - 8, ground + 24, 16, width, "ink", 0.25, channels=width)
        drawing.text(x, ground + 38 + width, f"{width}", "small")
    drawing.text(
        left - 30, 380, "numbers below: channels. Green layers are concatenated and passed on.", "small", "start"
    )
    return str(drawing)


def networks() -> str:
    """The four networks as rows of stages, with what comes out of each and what it costs at 224 x 224."""
    costs = [measure_cost(config) for config in CONFIGS.values()]
    wide, high, gap, left = 118, 92, 8, 20
    columns = max(len(cost.stages) for cost in costs)
    drawing = Drawing(left * 2 + columns * (wide + gap), 30 + len(costs) * (high + 58), "the four HarDNets")
    colours = {112: "first", 56: "first", 28: "second", 14: "third", 7: "fourth"}
    for row, cost in enumerate(costs):
        top = 30 + row * (high + 58)
        total, config = cost.total, CONFIGS[cost.model]
        facts = f"{total.params / 1e6:.2f} M parameters, {total.macs / 1e9:.2f} G multiply-accumulates"
        drawing.text(left, top, f"{cost.model}: {facts}, {total.cio / 1e6:.1f} M CIO", "title", "start")
        for column, stage in enumerate(cost.stages):
            x, y = left + column * (wide + gap), top + 12
            shape = " x ".join(map(str, stage.output_shape))
            side = stage.output_shape[-1] if len(stage.output_shape) == 3 else None
            drawing.rect(x, y, wide, high, colours[side] if side else "faint", 0.25, stage=f"{cost.model}-{column}")
            block = column - 1
            inside = f"{config.block_layers[block]} layers, k = {config.growth_rates[block]}" if side and column else ""
            lines = (
                stage.name,
                inside,
                shape,
                f"{stage.params / 1e6:.2f} M parameters",
                f"{stage.macs / 1e6:,.0f} M MACs",
            )
            for number, words in enumerate(lines):
                drawing.text(x + wide / 2, y + 17 + 17 * number, words, "" if number == 0 else "small")
    return str(drawing)


def training_curves() -> str:
    """Loss and held-out error over the epochs of the runs that made the shipped checkpoint."""
    runs = [_lines(DOCS / "training" / f"fashion-mnist-{number}.jsonl") for number in (1, 2, 3)]
    starts = [sum(map(len, runs[:number])) for number in range(len(runs))]
    epochs = [line | {"epoch": line["epoch"] + start} for run, start in zip(runs, starts, strict=True) for line in run]
    drawing = Drawing(900, 360, "loss and error over the epochs of the three runs")
    last = epochs[-1]["epoch"]
    panels: tuple[tuple[str, dict[str, str], Callable[[float], float], tuple[float, ...]], ...] = (
        ("training loss (nats, smoothed targets)", {"train_loss": ""}, float, (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)),
        (
            "top-1 error on held-out images (%), logarithmic",
            {"val_top1_error": "last weights", "ema_val_top1_error": "averaged weights"},
            log10,
            (4, 5, 10, 20, 50, 100),
        ),
    )
    for number, (title, lines, scale, marks) in enumerate(panels):
        left, right, top, bottom = 60 + 450 * number, 430 + 450 * number, 50, 310
        low, high = scale(marks[0] * 0.95), scale(marks[-1])

        def place(
            epoch: float, value: float, *, left: int = left, right: int = right, low: float = low, high: float = high,
            top: int = top, bottom: int = bottom, scale: Callable[[float], float] = scale,
        ) -> tuple[float, float]:  # fmt: skip
            return left + (right - left) * epoch / last, bottom - (bottom - top) * (scale(value) - low) / (high - low)

        drawing.text((left + right) / 2, 30, title)
        for mark in marks:
            _, y = place(0, mark)
            drawing.path(f"M{left} {y:.2f} H{right}", "faint", "1 4")
            drawing.text(left - 8, y + 4, f"{mark:g}", "small", "end")
        for epoch in ticks(0, last, 5):
            drawing.text(place(epoch, marks[0])[0], bottom + 20, f"{epoch:g}", "small")
        for start, run, anchor in zip(starts[1:], ("run 2", "run 3"), ("end", "start"), strict=True):
            x, _ = place(start + 0.5, marks[0])
            drawing.path(f"M{x:.2f} {top} V{bottom}", "ink", "2 3")
            drawing.text(x, top - 4, run, "small", anchor)
        drawing.text((left + right) / 2, bottom + 40, "epoch", "small")
        for line, (name, label) in enumerate(lines.items()):
            points = [place(each["epoch"], each[name]) for each in epochs if each.get(name) is not None]
            drawing.polyline(points, LINK_COLOURS[line])
            for point in points:
                drawing.circle(*point, 2.2, LINK_COLOURS[line])
            if label:
                drawing.circle(left + 16, bottom - 34 + 18 * line, 4, LINK_COLOURS[line])
                drawing.text(left + 26, bottom - 30 + 18 * line, label, "small", "start")
    return str(drawing)


def confusions() -> str:
    """What the shipped checkpoint takes for what on the test images of Fashion-MNIST."""
    counted = json.loads((DOCS / "training" / "fashion-mnist-confusions.json").read_text(encoding="utf-8"))
    names, counts = counted["classes"], counted["counts"]
    cell, left, top = 52, 100, 60
    drawing = Drawing(
        left + cell * len(names) + 20, top + cell * len(names) + 66, "confusions of the shipped checkpoint"
    )
    drawing.text(left, 24, "1000 test images of each class and their labels", "title", "start")
    for row, (name, line) in enumerate(zip(names, counts, strict=True)):
        drawing.text(left - 8, top + cell * row + 28, name, "small", "end")
        drawing.text(left + cell * row + cell / 2, top - 8, name.split("/")[0], "small")
        for column, count in enumerate(line):
            x, y = left + cell * column, top + cell * row
            strength = 0.06 + 0.6 * (count / 1000) ** 0.4 if count else 0.03
            drawing.rect(x + 1, y + 1, cell - 2, cell - 2, "third" if row == column else "second", strength)
            if count:
                drawing.text(x + cell / 2, y + 28, count, "small")
    right = sum(line[number] for number, line in enumerate(counts))
    total = sum(map(sum, counts))
    words = f"rows: the class; columns: the label given. {right:,} of {total:,} right ({counted['weights']})"
    drawing.text(20, top + cell * len(names) + 30, words, "small", "start")
    return str(drawing)


PICTURES: dict[str, Callable[[], str]] = {
    "harmonic_links.svg": harmonic_links_of_a_block,
    "networks.svg": networks,
    "fashion_mnist_curves.svg": training_curves,
    "fashion_mnist_confusions.svg": confusions,
    "error_against_cost.svg": error_against_cost,
}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Draw them all."""
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
