"""The picture of reported errors over what the networks cost; drawn by :mod:`tools.make_pictures`."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import log10
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torchvision.models import get_model

from benchmarks.tables import _column
from hardnet.models.config import CONFIGS
from hardnet.models.cost import _Counter, measure_cost

from .svg import Drawing, ticks

REPO = Path(__file__).parent.parent
RESULTS = REPO / "benchmarks" / "results" / "cpu-224.json"

LOWEST, HIGHEST = 21, 29
"""Errors, per cent: the ends of the upright axis."""
LEFT, WIDE, APART, TOP, BOTTOM = 44, 240, 34, 56, 300
MARKS: dict[str, tuple[Callable[..., None], int, str]] = {
    "eager": (Drawing.circle, 4, "first"),
    "fastest": (Drawing.circle, 4, "third"),
    "pytorchcv": (Drawing.ring, 7, "faint"),
    "torchvision": (Drawing.square, 4, "second"),
}
"""How each kind of point is drawn: the shape, its radius and its colour."""


class Point(NamedTuple):
    """A network in one panel."""

    kind: str
    """A key of ``MARKS``."""
    model: str
    error: float
    """Top-1, per cent, as reported."""
    cost: float


class Panel(NamedTuple):
    """One measure of cost: what it is called, its axis and its points."""

    title: str
    scale: Callable[[float], float]
    ends: tuple[float, float]
    marks: tuple[float, ...]
    points: list[Point]

    def place(self, cost: float) -> float:
        """Return how far a cost lies from the left end, in units of the drawing."""
        first, last = map(self.scale, self.ends)
        return round(WIDE * (self.scale(cost) - first) / (last - first), 2)


def error_against_cost() -> str:
    """Reported error over measured latency, multiply-accumulates and CIO, of our networks and those measured beside."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = [row for row in results["rows"] if row["precision"] == "fp32" and row["reported_top1_error"] is not None]
    drawing = Drawing(LEFT + 3 * WIDE + 2 * APART + 24, 376, "reported error over latency, MACs and CIO")
    title = "Reported top-1 error on ImageNet (%, IMAGENET1K_V1) over what it costs"
    drawing.text(LEFT - 24, 24, title, "title", "start")
    for number, panel in enumerate(_panels(rows)):
        _draw_panel(drawing, panel, number)
    engines = sorted({_column(_fastest(rows, name)["engine"], "fp32") for name in CONFIGS})
    _draw_legend(drawing, f"the fastest float32 engine ({', '.join(engines)})")
    machine = f"{results['machine']['processor']}, {results['machine']['cores']} cores"
    words = f"Latency: one image of 224 x 224, median, {machine}, {results['date']} ({RESULTS.relative_to(REPO)})"
    drawing.text(LEFT - 24, BOTTOM + 64, words, "small", "start")
    return str(drawing)


def _panels(rows: list[dict[str, Any]]) -> tuple[Panel, Panel, Panel]:
    """Sort the float32 rows of a benchmark into the panels. pytorchcv's networks are ours: only the latency differs."""
    latency, macs, cio = [], [], []
    for row in rows:
        kind = "eager" if row["source"] == "hardnet" else row["source"]
        if row["engine"] != "eager" or kind not in MARKS:
            continue
        model, error = row["model"], row["reported_top1_error"]
        latency.append(Point(kind, model, error, row["milliseconds"]["median"]))
        if kind == "eager":
            cost = measure_cost(CONFIGS[model]).total
            macs.append(Point(kind, model, error, cost.macs / 1e9))
            cio.append(Point(kind, model, error, cost.cio / 1e6))
            fastest = _fastest(rows, model)["milliseconds"]["median"]
            latency.append(Point("fastest", model, error, fastest))
        elif kind == "torchvision":
            macs.append(Point(kind, model, error, row["macs"] / 1e9))
            cio.append(Point(kind, model, error, _cio(model) / 1e6))
    return (
        Panel("measured latency (ms, log scale)", log10, (2, 120), (2, 5, 10, 20, 50, 100), latency),
        Panel("multiply-accumulates (10\u2079, log scale)", log10, (0.2, 14), (0.2, 0.5, 1, 2, 5, 10), macs),
        Panel("CIO (10\u2076 elements)", float, (0, 25), (0, 5, 10, 15, 20, 25), cio),
    )


def _fastest(rows: list[dict[str, Any]], model: str) -> dict[str, Any]:
    """Return the row of one of our models in its fastest engine."""
    own = [row for row in rows if row["source"] == "hardnet" and row["model"] == model]
    return min(own, key=lambda row: row["milliseconds"]["median"])


def _cio(name: str) -> int:
    """Count the CIO of a network of torchvision's as that of ours is counted."""
    with torch.device("meta"):
        network = get_model(name, weights=None).eval()
        counter = _Counter(network)
        network(torch.empty(1, 3, 224, 224))
    return counter.cio


def _draw_panel(drawing: Drawing, panel: Panel, number: int) -> None:
    start = LEFT + number * (WIDE + APART)
    drawing.text(start + WIDE / 2, TOP - 10, panel.title)
    for error in ticks(LOWEST, HIGHEST, 2):
        drawing.path(f"M{start} {_level(error):g} H{start + WIDE}", "faint", "1 4")
        if number == 0:
            drawing.text(start - 8, _level(error) + 4, f"{error:g}", "small", "end")
    drawing.path(f"M{start} {BOTTOM} H{start + WIDE}", "faint")
    for mark in panel.marks:
        drawing.path(f"M{start + panel.place(mark):g} {BOTTOM} V{BOTTOM + 5}", "faint")
        drawing.text(start + panel.place(mark), BOTTOM + 18, f"{mark:g}", "small")
    for model in dict.fromkeys(point.model for point in panel.points):
        own = [point for point in panel.points if point.model == model]
        places = [start + panel.place(point.cost) for point in own]
        level = _level(own[0].error)
        if len(own) > 1:
            drawing.path(f"M{min(places):g} {level:g} H{max(places):g}", "faint", "3 3")
        drawing.text(max(places), level + (18 if model in CONFIGS else -9), model, "small")
    for point in panel.points:
        draw, radius, colour = MARKS[point.kind]
        place = start + panel.place(point.cost), _level(point.error)
        draw(drawing, *place, radius, colour, panel=number, **point._asdict())


def _draw_legend(drawing: Drawing, fastest: str) -> None:
    words = {
        "eager": "HarDNet, eager PyTorch",
        "fastest": fastest,
        "pytorchcv": "pytorchcv's HarDNet, eager",
        "torchvision": "torchvision's, eager",
    }
    x = LEFT - 18.0
    for kind, (draw, radius, colour) in MARKS.items():
        draw(drawing, x, BOTTOM + 38, radius, colour)
        drawing.text(x + 13, BOTTOM + 42, words[kind], "small", "start")
        x += 36 + 6 * len(words[kind])


def _level(error: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * (error - LOWEST) / (HIGHEST - LOWEST), 2)
