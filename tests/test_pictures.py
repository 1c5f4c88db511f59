"""The pictures of the documentation, and the tables and figures that were committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import hardnet
from benchmarks import pictures as speed_pictures
from benchmarks import tables
from hardnet.models.config import CONFIGS, stage_indices
from hardnet.models.layers import HarDBlock
from tools import pictures

REPO = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["harmonic_links.png", "speed.png"])
def test_a_picture_has_an_opaque_background(name: str, tmp_path: Path) -> None:
    draw = {**pictures.PICTURES, **speed_pictures.PICTURES}[name]
    speed_pictures.save(draw, tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.convert("RGBA").getextrema()[3] == (255, 255)  # an opaque background, also in dark mode


def test_all_pictures_are_committed() -> None:
    for name in (*pictures.PICTURES, *speed_pictures.PICTURES):
        assert (speed_pictures.FOLDER / name).stat().st_size > 10_000


def test_the_arrows_are_the_links_of_the_block_that_is_built() -> None:
    block = hardnet.create_model("hardnet68").base[stage_indices(CONFIGS["hardnet68"])[0].block]
    assert isinstance(block, HarDBlock)
    [axes] = pictures.harmonic_links_of_a_block().axes
    drawn = {patch.get_gid() for patch in axes.patches if patch.get_gid()}
    assert drawn == {f"link-{link}-{layer}" for layer, links in enumerate(block.links, 1) for link in links}
    channels = {text.get_text() for text in axes.texts}
    assert {str(layer.conv.out_channels) for layer in block.layers} <= channels


def test_the_speed_picture_shows_the_committed_figures() -> None:
    rows = json.loads(speed_pictures.RESULTS.read_text(encoding="utf-8"))["rows"]
    panels = speed_pictures.speed().axes
    measured = [
        panel for panel in speed_pictures.PANELS if panel in {(row["engine"], row["precision"]) for row in rows}
    ]
    assert len(measured) > 3
    for axes, (engine, precision) in zip(panels, measured, strict=False):
        [line] = [line for line in axes.lines if line.get_label() == "hardnet"]
        assert [x for x, _ in line.get_xydata()] == [
            row["milliseconds"]["median"]
            for row in rows
            if (row["source"], row["engine"], row["precision"]) == ("hardnet", engine, precision)
            and (row["batch_size"], row["height"]) == (1, 224)
        ]
        errors = [26.83, 24.55, 23.52, 21.96]  # the lower of V1 and V2
        assert [y for _, y in line.get_xydata()] == errors[: len(line.get_xydata())]


def test_the_confusions_are_those_of_the_reported_error() -> None:
    [counted] = json.loads((REPO / "docs" / "training" / "fashion-mnist-confusions.json").read_text(encoding="utf-8"))
    record = hardnet.get_weights(counted["model"], counted["weights"])
    assert tuple(counted["classes"]) == record.categories
    assert [sum(row) for row in counted["confusion"]] == [1000] * 10
    right = sum(row[number] for number, row in enumerate(counted["confusion"]))
    assert 100 - right / 100 == pytest.approx(record.top1_error, abs=1e-9)


def test_the_documents_show_the_committed_results() -> None:
    assert any(tables.BLOCK.search(path.read_text(encoding="utf-8")) for path in tables.DOCUMENTS)
    stale = [path.name for path in tables.stale(tables.DOCUMENTS, tables.RESULTS)]
    assert not stale, "run python -m benchmarks tables"
