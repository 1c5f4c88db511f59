"""The verb ``benchmark``, the measurements in benchmarks/, and the pictures and tables made from their results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import hardnet
from benchmarks import pictures as speed_pictures
from hardnet.cli import main
from hardnet.models.config import CONFIGS, stage_indices
from hardnet.models.layers import HarDBlock
from tools import pictures

REPO = Path(__file__).parent.parent


# hardnet benchmark


def test_the_verb_prints_and_writes_a_row_per_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "benchmark hardnet39ds --engines eager torch --precisions fp32 int8 --size 32 --rounds 2 --threads 1"
    assert main([*command.split(), "--turn-seconds", "0.01", "--json", str(tmp_path / "run.json")]) == 0
    printed = capsys.readouterr()
    results = json.loads((tmp_path / "run.json").read_text())
    assert [line.split()[:3] for line in printed.out.splitlines()[1:]] == [
        ["hardnet39ds", "eager", "fp32"],
        ["hardnet39ds", "torch", "fp32"],
    ]
    assert [row["engine"] for row in results["rows"]] == ["eager", "torch"]
    for row in results["rows"]:
        assert 0 < row["lower_quartile_ms"] <= row["median_ms"] <= row["upper_quartile_ms"]
        assert row["images_per_second"] == pytest.approx(1000 / row["median_ms"], rel=0.02)
    assert [reason.split(":")[0] for reason in results["left_out"]] == [
        "hardnet39ds eager int8",
        "hardnet39ds torch int8",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("hardnet99", "hardnet99"),
        ("--size 16", "32"),
        ("--turn-seconds nan", "turn-seconds"),
        ("--device cuda:99", "device"),
    ],
)
def test_the_verb_refuses_wrong_arguments(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *arguments.split()]) == 2
    assert said in capsys.readouterr().err


# Pictures


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
    panels = [axes for axes in speed_pictures.speed().axes if axes.lines]
    engines = list(dict.fromkeys(row["engine"] for row in rows if row["source"] == "hardnet"))
    assert len(panels) == len(engines)
    for axes, engine in zip(panels, engines, strict=True):
        [line] = [line for line in axes.lines if line.get_label() == "hardnet"]
        assert [(x, y) for x, y in line.get_xydata()] == [
            (row["milliseconds"]["median"], hardnet.get_weights(row["model"], "IMAGENET1K_V1").top1_error)
            for row in rows
            if (row["source"], row["engine"], row["precision"]) == ("hardnet", engine, "fp32")
        ]


def test_the_confusions_are_those_of_the_reported_error() -> None:
    counted = json.loads((REPO / "docs" / "training" / "fashion-mnist-confusions.json").read_text(encoding="utf-8"))
    record = hardnet.get_weights(*counted["weights"].split())
    assert tuple(counted["classes"]) == record.categories
    assert [sum(row) for row in counted["counts"]] == [1000] * 10
    right = sum(row[number] for number, row in enumerate(counted["counts"]))
    assert 100 - right / 100 == pytest.approx(record.top1_error, abs=1e-9)
