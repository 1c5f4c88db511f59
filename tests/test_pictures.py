"""The pictures of the documentation are what the code draws, and what they say is what the library does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import hardnet
from hardnet.config import CONFIGS, stage_indices
from hardnet.layers import HarDBlock
from tools.make_pictures import FOLDER, PICTURES

DOCS = Path(__file__).parent.parent / "docs"
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
