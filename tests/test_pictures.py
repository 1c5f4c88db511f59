"""The pictures of the documentation."""

import json
from pathlib import Path

import pytest

import hardnet
from tools import pictures

REPO = Path(__file__).parent.parent


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_committed_picture_can_be_drawn_again(name: str) -> None:
    assert pictures.PICTURES[name]().axes
    assert (pictures.FOLDER / name).stat().st_size > 10_000


def test_the_confusions_are_those_of_the_reported_error() -> None:
    [counted] = json.loads((REPO / "docs" / "training" / "fashion-mnist-confusions.json").read_text(encoding="utf-8"))
    record = hardnet.get_weights(counted["model"], counted["weights"])
    assert tuple(counted["classes"]) == record.categories
    assert [sum(row) for row in counted["confusion"]] == [1000] * 10
    right = sum(row[number] for number, row in enumerate(counted["confusion"]))
    assert 100 - right / 100 == pytest.approx(record.top1_error, abs=1e-9)
