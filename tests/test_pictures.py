"""The pictures of the documentation are what the code draws, and what they say is what the library does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import hardnet
from hardnet.models.config import CONFIGS, stage_indices
from hardnet.models.layers import HarDBlock
from tools.cost_picture import APART, BOTTOM, LEFT, TOP, WIDE
from tools.make_pictures import FOLDER, PICTURES

REPO = Path(__file__).parent.parent
DOCS = REPO / "docs"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", PICTURES)
def test_the_committed_picture_is_what_is_drawn(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == PICTURES[name](), "run: python -m tools.make_pictures"


@pytest.mark.parametrize("name", PICTURES)
def test_it_is_readable_in_light_and_dark(name: str) -> None:
    """Every colour is one of the two schemes', and nothing is written beyond the edge."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    drawing = ElementTree.fromstring(text)  # noqa: S314  (our own file)
    assert "prefers-color-scheme: dark" in text
    assert not re.findall(r'(?:fill|stroke)="(?!var\()', text)
    width = float(drawing.attrib["width"])
    for element in drawing.iter(f"{SVG}text"):
        size = {"small": 6.2, "title": 9.5}.get(element.get("class", ""), 7.5)  # units per letter, generously
        length, x = size * len(element.text or ""), float(element.attrib["x"])
        before = {"start": 0.0, "middle": length / 2, "end": length}[element.attrib["text-anchor"]]
        assert x - before >= 0, element.text
        assert x - before + length <= width, element.text


def test_the_links_are_those_of_the_block_that_is_built() -> None:
    config = CONFIGS["hardnet68"]
    block = hardnet.create_model("hardnet68").base[stage_indices(config)[0].block]
    assert isinstance(block, HarDBlock)
    text = (FOLDER / "harmonic_links.svg").read_text(encoding="utf-8")
    drawn = {(int(a), int(b)) for a, b in re.findall(r'data-link="(\d+)-(\d+)"', text)}
    assert drawn == {(link, layer) for layer, links in enumerate(block.links, 1) for link in links}
    channels = [int(width) for width in re.findall(r'data-channels="(\d+)"', text)]
    assert channels == [block.layers[0].conv.in_channels, *(layer.conv.out_channels for layer in block.layers)]
    passed_on = re.findall(r'fill="var\(--third\)"[^>]*data-layer="(\d+)"', text)
    assert [int(layer) for layer in passed_on] == block.kept


def test_the_confusions_are_those_of_the_reported_error() -> None:
    counted = json.loads((DOCS / "training" / "fashion-mnist-confusions.json").read_text(encoding="utf-8"))
    record = hardnet.get_weights(*counted["weights"].split())
    assert tuple(counted["classes"]) == record.categories
    assert [sum(row) for row in counted["counts"]] == [1000] * 10
    right = sum(row[number] for number, row in enumerate(counted["counts"]))
    assert 100 - right / 100 == pytest.approx(record.top1_error, abs=1e-9)


def points_of(name: str) -> list[dict[str, str]]:
    """Return what a picture says of its points, and the attributes by which they are placed."""
    drawing = ElementTree.fromstring((FOLDER / name).read_text(encoding="utf-8"))  # noqa: S314  (our own file)
    return [
        {key.removeprefix("data-"): value for key, value in element.attrib.items()}
        for element in drawing.iter()
        if "data-panel" in element.attrib
    ]


def test_the_costs_are_those_of_the_benchmark_and_the_model_table() -> None:
    results = json.loads((REPO / "benchmarks" / "results" / "cpu-224.json").read_text(encoding="utf-8"))
    rows = [row for row in results["rows"] if row["precision"] == "fp32"]
    assert {(row["batch_size"], row["height"], row["width"]) for row in rows} == {(1, 224, 224)}
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    shown = {(p["kind"], p["model"], p["panel"]): float(p["cost"]) for p in points_of("error_against_cost.svg")}
    for name in CONFIGS:
        own = [row for row in rows if row["source"] == "hardnet" and row["model"] == name]
        times = {row["engine"]: row["milliseconds"]["median"] for row in own}
        assert shown["eager", name, "0"] == times["eager"]
        assert shown["fastest", name, "0"] == min(times.values()) < times["eager"]
        [(macs, cio)] = re.findall(rf"^\| `{name}` \| [\d.]+ M \| ([\d.]+) G \| ([\d.]+) M", readme, re.MULTILINE)
        assert f"{shown['eager', name, '1']:.2f}" == macs
        assert f"{shown['eager', name, '2']:.1f}" == cio
    for row in rows:
        if row["source"] in ("pytorchcv", "torchvision"):
            assert shown[row["source"], row["model"], "0"] == row["milliseconds"]["median"]


def test_the_errors_are_the_reported_ones_and_every_point_is_in_its_panel() -> None:
    points = points_of("error_against_cost.svg")
    for point in points:
        if point["model"] in CONFIGS:
            assert float(point["error"]) == hardnet.get_weights(point["model"], "IMAGENET1K_V1").top1_error
    for panel in range(3):
        start = LEFT + panel * (WIDE + APART)
        dots = [point for point in points if point["panel"] == str(panel) and "cx" in point]
        places = [float(point["cx"]) for point in sorted(dots, key=lambda point: float(point["cost"]))]
        levels = [float(point["cy"]) for point in sorted(dots, key=lambda point: -float(point["error"]))]
        assert start < places[0]
        assert places == sorted(places)
        assert places[-1] < start + WIDE
        assert levels[0] > TOP
        assert levels == sorted(levels)
        assert levels[-1] < BOTTOM
