"""Draw the pictures of the documentation: python -m tools.pictures [NAME ...], all into docs/pictures by default.

They show the library's own functions, the logs of training and the committed results of the benchmarks.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from benchmarks.tables import RESULTS, engine_name
from hardnet.models.config import CONFIGS, harmonic_links, kept_layers, layer_width

DOCS = Path(__file__).parent.parent / "docs"
FOLDER, TRAINING = DOCS / "pictures", DOCS / "training"
BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0969da", "#bc4c00", "#1a7f37", "#8250df", "#6e7781", "#1f2328"
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white", "text.color": INK, "font.size": 10,  # opaque, readable on a dark page
    "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "hardnet",
}  # fmt: skip
LABELS = {
    "hardnet39ds": "39DS", "hardnet68ds": "68DS", "hardnet68": "68", "hardnet85": "85", "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2", "mobilenet_v3_large": "MobileNetV3", "densenet121": "DenseNet-121",
    "efficientnet_b0": "EfficientNet-B0", "ese_vovnet39b": "VoVNet-39",
}  # fmt: skip
PLACES = {"mobilenet_v2": (0, 9), "mobilenet_v3_large": (0, -12)}
"""Offsets of labels that would cover our line, in points; all others are on the right."""


def harmonic_links_of_a_block() -> Figure:
    """The first block of hardnet68: layers as boxes, an arrow from each layer to those that read it."""
    config = CONFIGS["hardnet68"]
    layers, growth = config.block_layers[0], config.growth_rates[0]
    output_layers = kept_layers(layers)
    colours = {1: BLUE, 2: ORANGE, 4: PURPLE, 8: "#bf3989"}
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.6, layers + 0.6), ylim=(-2.0, 3.1), aspect="equal")
    axes.axis("off")
    for layer in range(layers + 1):
        width = layer_width(layer, growth, config.growth_multiplier) if layer else config.stem_channels[1]
        colour = GREEN if layer in output_layers else GREY
        style = {"fc": colour, "ec": "none", "alpha": 0.3}
        axes.add_patch(FancyBboxPatch((layer - 0.22, -0.22), 0.44, 0.44, "round,pad=0.04", **style))
        axes.text(layer, 0, str(layer) if layer else "input", ha="center", va="center", fontsize=11 if layer else 8.5)
        axes.bar(layer, -width / 110, 0.3, -0.4, color=colour, alpha=0.5)
        axes.text(layer, -0.48 - width / 110, str(width), ha="center", va="top", fontsize=9)
        for source in harmonic_links(layer) if layer else ():
            aside = 0.31 - 0.085 * (layer - source).bit_length()  # leave on the right, arrive on the left, long inside
            axes.add_patch(FancyArrowPatch(
                (source + aside, 0.27), (layer - aside, 0.27), arrowstyle="-|>", mutation_scale=11, lw=1.6,
                connectionstyle="arc3,rad=-0.62", color=colours[layer - source],
            ))  # fmt: skip
    lines = [Line2D([], [], color=c, lw=2, marker=">", label=f"n - {n}, if {n} divides n") for n, c in colours.items()]
    axes.legend(
        handles=lines, loc="upper left", bbox_to_anchor=(-0.08, 1), frameon=False, title="Layer n reads layer",
        alignment="left",
    )  # fmt: skip
    axes.get_legend().set_in_layout(False)  # it takes no space from the blocks
    axes.add_artist(axes.get_legend())
    kinds = {"part of the output of the block": GREEN, "read inside the block only": GREY}
    patches = [Patch(fc=colour, alpha=0.4, label=text) for text, colour in kinds.items()]
    axes.legend(handles=patches, loc="lower center", frameon=False, ncols=2, title="Bars: output channels of a layer")
    axes.set_title(f"Harmonic links in the first HarDBlock of {config.name}", fontsize=12)
    return figure


def training_curves() -> Figure:
    """Loss and held-out error over the epochs of the runs that made the shipped checkpoint."""
    texts = [(TRAINING / f"fashion-mnist-{number}.jsonl").read_text(encoding="utf-8") for number in (1, 2, 3)]
    runs = [[json.loads(line) for line in text.splitlines()] for text in texts]
    starts = [0, *accumulate(map(len, runs))][: len(runs)]
    epochs = [line | {"epoch": line["epoch"] + start} for run, start in zip(runs, starts, strict=True) for line in run]
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name, label, colour in (
        (left, "train_loss", "training loss (nats, smoothed targets)", BLUE),
        (right, "val_top1_error", "last weights", BLUE),
        (right, "ema_val_top1_error", "averaged weights", ORANGE),
    ):
        points = [(line["epoch"], line[name]) for line in epochs if line.get(name) is not None]
        axes.plot(*zip(*points, strict=True), marker=".", color=colour, label=label)
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


def speed() -> Figure:
    """Reported error over measured latency in four engines, over memory and over multiply-accumulates."""
    results = json.loads((RESULTS / "cpu.json").read_text(encoding="utf-8"))
    rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in results["rows"]:
        if (row["batch_size"], row["height"]) == (1, 224) and row["source"] != "pytorchcv":
            rows[row["engine"], row["precision"]].append(row)
    figure = Figure(figsize=(10, 8), layout="constrained")
    *panels, memory, macs = figure.subplots(2, 3, sharey=True).flatten()
    for axes, engine in zip(
        panels, (("eager", "fp32"), ("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")), strict=True
    ):
        latencies = {row["model"]: row["milliseconds"]["median"] for row in rows[engine]}
        axes.set(title=engine_name(*engine), xlabel="milliseconds per image")
        _scatter(axes, results["networks"], latencies, (1, 2, 5, 10, 20, 50, 100), (0.6, 150))
    megabytes = {row["model"]: row["running_memory_mb"] for row in rows["openvino", "fp32"]}
    memory.set(title="Memory in OpenVINO", xlabel="MB")
    _scatter(memory, results["networks"], megabytes, (100, 200, 300, 500), (75, 700))
    billions = {model: facts["macs"] / 1e9 for model, facts in results["networks"].items()}
    macs.set(title="Multiply-accumulates", xlabel="10\u2079 per image")
    _scatter(macs, results["networks"], billions, (0.2, 0.5, 1, 2, 5, 10), (0.11, 22))
    for axes in (panels[0], panels[3]):
        axes.set_ylabel("reported top-1 error (%)")
    legend = (
        ("HarDNet, this library", {"marker": "o", "color": BLUE}),
        ("other families", {"marker": "s", "color": ORANGE}),
        ("first published weights; filled: the best", {"marker": "o", "mfc": "white", "color": GREY}),
    )
    lines = [Line2D([], [], linestyle="", label=text, **style) for text, style in legend]
    machine = f"{results['machine']['processor']}, {results['machine']['cores']} cores, {results['date']}"
    title = f"One image of 224 x 224 pixels, median. {machine}."
    figure.legend(handles=lines, loc="outside lower center", ncols=3, frameon=False, title=title)
    return figure


def _scatter(
    axes: Axes, networks: dict[str, Any], costs: dict[str, float], marks: Sequence[float], ends: tuple[float, float]
) -> None:
    """Draw the errors of the first weights and of the best ones over the cost of each network, on a log axis."""
    axes.title.set_fontsize(11)
    axes.grid(alpha=0.3)
    axes.set_ylim(18.5, 29)
    for marker, colour, style, ours in (("o", BLUE, "-", True), ("s", ORANGE, "", False)):
        points = []
        for model in (model for model in costs if (model in CONFIGS) == ours):
            first, lowest = (networks[model][key] for key in ("reported_top1_error", "lowest_reported_top1_error"))
            axes.plot([costs[model]] * 2, [lowest, first], color=colour, lw=0.8)
            axes.plot([costs[model]], [first], marker=marker, mfc="white", color=colour, markersize=5)
            place = {"xytext": PLACES.get(model, (6, 3)), "ha": "center" if model in PLACES else "left"}
            axes.annotate(LABELS[model], (costs[model], lowest), textcoords="offset points", fontsize=8, **place)
            points.append((costs[model], lowest))
        axes.plot(*zip(*points, strict=True), marker=marker, color=colour, linestyle=style, lw=1)
    axes.set_xscale("log")
    axes.set_xlim(*ends)
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()


PICTURES = {
    "harmonic_links.png": harmonic_links_of_a_block,
    "fashion_mnist_curves.svg": training_curves,
    "speed.png": speed,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        with mpl.rc_context(STYLE):
            PICTURES[name]().savefig(FOLDER / name, dpi=150, metadata={"Date": None} if name.endswith("svg") else None)
