"""Draw the pictures of the measurements: reported error over latency, multiply-accumulates and CIO."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from benchmarks.tables import engine_name
from hardnet.models.config import CONFIGS
from hardnet.models.cost import measure_cost

REPO = Path(__file__).parent.parent
FOLDER = REPO / "docs" / "pictures"
RESULTS = REPO / "benchmarks" / "results" / "cpu-224.json"
BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0969da", "#bc4c00", "#1a7f37", "#8250df", "#6e7781", "#1f2328"
STYLE = {
    "figure.facecolor": "white",  # opaque, so that dark text stays readable on a dark page
    "font.size": 10,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "hardnet",  # the same file from the same figures
}
MARKS = {"hardnet": ("o", BLUE, "HarDNet, this library"), "pytorchcv": ("x", GREY, "HarDNet of pytorchcv, eager mode")}
PEER_MARK = ("s", ORANGE, "torchvision, eager mode")


def speed() -> Figure:
    """Reported error over measured latency, one panel per engine."""
    results = _results()
    rows = [row for row in results["rows"] if row["precision"] == "fp32" and row["reported_top1_error"] is not None]
    engines = list(dict.fromkeys(row["engine"] for row in rows if row["source"] == "hardnet"))
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    grid = figure.subplots(2, -(-(len(engines) + 1) // 2), sharex=True, sharey=True).flatten()
    for engine, axes in zip(engines, grid, strict=False):
        shown = [row for row in rows if row["source"] != "hardnet" or row["engine"] == engine]
        points = [(row["milliseconds"]["median"], row["reported_top1_error"]) for row in shown]
        _scatter(axes, ((row["source"], row["model"], *point) for row, point in zip(shown, points, strict=True)), "-")
        axes.set_title(engine_name(engine), fontsize=11)
        _log_axis(axes, (1, 2, 5, 10, 20, 50, 100), (0.65, 130))
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("milliseconds per image")
    for axes in grid[:: len(grid) // 2]:
        axes.set_ylabel("reported top-1 error (%)")
    for axes in grid[len(engines) :]:
        axes.axis("off")
        axes.legend(handles=_key(), loc="upper left", frameon=False, fontsize=9)
    machine = results["machine"]
    caption = (
        f"One image of 224 x 224 pixels, float32, median.\n{machine['processor']}, {machine['cores']} cores, "
        f"{results['date']}.\nErrors: ImageNet, as reported by the authors.\nFigures: {RESULTS.relative_to(REPO)}"
    )
    grid[-1].text(0.03, 0.55, caption, transform=grid[-1].transAxes, va="top", fontsize=9, linespacing=1.5)
    return figure


def error_against_cost() -> Figure:
    """Reported error over multiply-accumulates and over CIO, of our networks and of torchvision's."""
    rows = [
        row for row in _results()["rows"] if row["engine"] == "eager" and row["source"] in ("hardnet", "torchvision")
    ]
    points = [(row["source"], row["model"], row["reported_top1_error"], row["macs"] / 1e9) for row in rows]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _scatter(left, ((source, model, macs, error) for source, model, error, macs in points))
    _log_axis(left, (0.2, 0.5, 1, 2, 5, 10), (0.15, 16))
    left.set_xlabel("multiply-accumulates (10\u2079, log scale)")
    left.set_ylabel("reported top-1 error on ImageNet (%)")
    _scatter(right, ((source, model, cio(source, model) / 1e6, error) for source, model, error, _ in points))
    right.set_xlim(0, 27)
    right.set_xlabel("CIO (10\u2076 elements)")
    right.legend(handles=[_key()[0], _key()[2]], fontsize=9)
    return figure


def cio(source: str, model: str) -> int:
    """Return the elements of the input and output feature maps of all convolutions, for one image of 224 x 224."""
    if source == "hardnet":
        return measure_cost(CONFIGS[model]).total.cio
    import torchvision

    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += inputs[0].numel() + output.numel()

    with torch.device("meta"):
        network = torchvision.models.get_model(model, weights=None).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        network(torch.empty(1, 3, 224, 224))
    return total


def _scatter(axes: Axes, points: Iterable[tuple[str, str, float, float]], join: str = "") -> None:
    """Draw points (source, model, cost, error), those of our models joined by lines of the style ``join``."""
    axes.grid(alpha=0.3)
    axes.set_ylim(21, 29)
    lines: dict[str, list[tuple[float, float]]] = {}
    for source, model, cost, error in points:
        lines.setdefault(source, []).append((cost, error))
        if source != "pytorchcv":
            place = {"xytext": (-6, -5), "ha": "right", "va": "top"} if source == "hardnet" else {"xytext": (6, 5)}
            axes.annotate(model, (cost, error), textcoords="offset points", fontsize=8, **place)
    for source, line in lines.items():
        marker, colour, _ = MARKS.get(source, PEER_MARK)
        style = join if source in MARKS else ""
        axes.plot(*zip(*line, strict=True), marker=marker, color=colour, linestyle=style, lw=1, label=source)


def _key() -> list[Line2D]:
    return [Line2D([], [], marker=m, color=c, linestyle="", label=text) for m, c, text in (*MARKS.values(), PEER_MARK)]


def _log_axis(axes: Axes, marks: tuple[float, ...], ends: tuple[float, float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*ends)
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()


def _results() -> dict[str, Any]:
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


PICTURES: dict[str, Callable[[], Figure]] = {"speed.png": speed, "error_against_cost.svg": error_against_cost}


def save(draw: Callable[[], Figure], path: Path) -> None:
    """Draw a picture in the common style and write it, on an opaque background, in the format of the suffix."""
    with mpl.rc_context(STYLE):
        draw().savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    print(path)
