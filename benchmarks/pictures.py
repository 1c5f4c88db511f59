"""Draw the picture of the measurements: reported error over latency, memory and multiply-accumulates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.tables import engine_name
from hardnet.models.config import CONFIGS

REPO = Path(__file__).parent.parent
FOLDER = REPO / "docs" / "pictures"
RESULTS = REPO / "benchmarks" / "results" / "cpu.json"
BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0969da", "#bc4c00", "#1a7f37", "#8250df", "#6e7781", "#1f2328"
STYLE = {
    "figure.facecolor": "white",  # opaque, so that dark text stays readable on a dark page
    "font.size": 10,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "hardnet",  # the same file from the same figures
}
MARKS = {"hardnet": ("o", BLUE, "HarDNet, this library"), "other": ("s", ORANGE, "other families")}
LABELS = {
    "hardnet39ds": "39DS", "hardnet68ds": "68DS", "hardnet68": "68", "hardnet85": "85", "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2", "mobilenet_v3_large": "MobileNetV3", "densenet121": "DenseNet-121",
    "efficientnet_b0": "EfficientNet-B0", "ese_vovnet39b": "VoVNet-39",
}  # fmt: skip
PLACES: dict[str, Any] = {
    "mobilenet_v2": {"xytext": (0, 9), "ha": "center"},
    "mobilenet_v3_large": {"xytext": (0, -12), "ha": "center"},
}
"""Of labels that would cover our line; all others are on the right."""
PANELS = (("eager", "fp32"), ("torch", "fp32"), ("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
"""Engines and precisions; int8 has other errors."""


def speed() -> Figure:
    """Reported error over measured latency, one panel per engine, over memory and over multiply-accumulates."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    networks = results["networks"]
    figure = Figure(figsize=(11, 11), layout="constrained")
    grid = figure.subplots(3, 3, sharey=True).flatten()
    rows = [row for row in results["rows"] if (row["batch_size"], row["height"]) == (1, 224)]
    rows = [row for row in rows if row["source"] != "pytorchcv"]
    panels = [panel for panel in PANELS if any((row["engine"], row["precision"]) == panel for row in rows)]
    for axes, panel in zip(grid, panels, strict=False):
        here = [row for row in rows if (row["engine"], row["precision"]) == panel]
        _scatter(axes, networks, {row["model"]: row["milliseconds"]["median"] for row in here})
        axes.set_title(engine_name(*panel), fontsize=11)
        _log_axis(axes, "milliseconds per image", (1, 2, 5, 10, 20, 50, 100), (0.6, 150))
    here = [row for row in rows if (row["engine"], row["precision"]) == ("openvino", "fp32")]
    memory, macs, legend, *unused = grid[len(panels) :]
    _scatter(memory, networks, {row["model"]: row["running_memory_mb"] for row in here})
    memory.set_title("Memory in OpenVINO", fontsize=11)
    _log_axis(memory, "MB", (100, 200, 300, 500), (75, 700))
    _scatter(macs, networks, {model: facts["macs"] / 1e9 for model, facts in networks.items()})
    macs.set_title("Multiply-accumulates", fontsize=11)
    _log_axis(macs, "10\u2079 per image", (0.2, 0.5, 1, 2, 5, 10), (0.11, 22))
    for axes in grid[::3]:
        axes.set_ylabel("reported top-1 error (%)")
    for axes in (legend, *unused):
        axes.axis("off")
    key = [Line2D([], [], marker=mark, color=colour, linestyle="", label=text) for mark, colour, text in MARKS.values()]
    key.append(Line2D([], [], marker="o", mfc="white", color=GREY, linestyle="", label="first published weights"))
    legend.legend(handles=key, loc="upper left", frameon=False, fontsize=10)
    machine = results["machine"]
    caption = (
        "One image of 224 x 224 pixels, median.\n"
        f"{machine['processor']}, {machine['cores']} cores, {results['date']}.\n"
        "Errors: ImageNet, as reported with the weights.\nFilled marks: the weights with the lowest error.\n"
        f"Figures: {RESULTS.relative_to(REPO)}"
    )
    legend.text(0.03, 0.6, caption, transform=legend.transAxes, va="top", fontsize=10, linespacing=1.5)
    return figure


def _scatter(axes: Axes, networks: dict[str, Any], costs: dict[str, float]) -> None:
    """Draw the errors of the first weights and of the best ones over the cost of each network."""
    axes.grid(alpha=0.3)
    axes.set_ylim(18.5, 29)
    lines: dict[str, list[tuple[float, float]]] = {}
    for model, cost in costs.items():
        first, lowest = (networks[model][key] for key in ("reported_top1_error", "lowest_reported_top1_error"))
        family = "hardnet" if model in CONFIGS else "other"
        marker, colour, _ = MARKS[family]
        axes.plot([cost, cost], [lowest, first], color=colour, lw=0.8)
        axes.plot([cost], [first], marker=marker, mfc="white", color=colour, markersize=5)
        lines.setdefault(family, []).append((cost, lowest))
        place = PLACES.get(model, {"xytext": (6, 3)})
        axes.annotate(LABELS[model], (cost, lowest), textcoords="offset points", fontsize=8, **place)
    for family, line in lines.items():
        marker, colour, _ = MARKS[family]
        style = "-" if family == "hardnet" else ""
        axes.plot(*zip(*line, strict=True), marker=marker, color=colour, linestyle=style, lw=1, label=family)


def _log_axis(axes: Axes, label: str, marks: tuple[float, ...], ends: tuple[float, float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*ends)
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()
    axes.set_xlabel(label)


PICTURES: dict[str, Callable[[], Figure]] = {"speed.png": speed}


def save(draw: Callable[[], Figure], path: Path) -> None:
    """Draw a picture in the common style and write it, on an opaque background, in the format of the suffix."""
    with mpl.rc_context(STYLE):
        draw().savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    print(path)
