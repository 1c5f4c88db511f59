"""The figures on the page about reliability are those of the tests' own lists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import test_download
import test_fuzz
import test_killed
from faults import FAULTS
from made_records import GOOD
from strange_checkpoints import CALLS, call

PAGE = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text(encoding="utf-8")
PRESENTATIONS = 3
"""Of a pickle: as it is, in torch's older format, in its newer one."""


def tried(what: str) -> int:
    """The number in this row of the first table."""
    [number] = re.findall(rf"^\| {what}[^|]*\| ([\d,]+) \|", PAGE, re.MULTILINE)
    return int(number.replace(",", ""))


def test_the_first_table() -> None:
    assert tried("faults of servers") == len(FAULTS)
    assert tried("processes killed") == test_killed.KILLS * len(test_killed.KINDS)
    forms = len(call(*CALLS[0]))
    assert tried("pickles that would run code") == len(CALLS) * forms * PRESENTATIONS
    assert f"{len(CALLS)} calls in {forms} forms and {PRESENTATIONS} wrappings" in PAGE
    # This one follows the size of a file that torch writes, which is not the same for all of its versions.
    assert tried("cached files damaged") == pytest.approx(len(test_download.damages()), abs=10)


def test_the_texts_numbers() -> None:
    text = " ".join(PAGE.split())
    kinds, kills = len(test_killed.KINDS), test_killed.KILLS * len(test_killed.KINDS)
    assert f"{test_killed.KILLS} kills (SIGKILL) each" in text
    assert f"succeeded {kills} times of {kills}" in text
    assert kinds == 6  # the page names them
    limits = int(re.findall(r"A download also at (\d+) limits", text)[0])
    assert limits == pytest.approx(len(range(0, len(GOOD), len(GOOD) // 25)), abs=1)
    mutations = sum(test_fuzz.MUTATIONS.values())
    assert f"({test_fuzz.COMMAND_LINES} command lines; the slow tests, all) with {mutations:,} seeded mutations" in text


def test_the_fuzzed_inputs_add_up() -> None:
    table = PAGE.partition("## Fuzzing")[2].partition("\n## ")[0]
    inputs = [int(number.replace(",", "")) for number in re.findall(r"^\| [a-z ]+ \| \d+ \| ([\d,]+) \|", table, re.M)]
    assert len(inputs) == len(test_fuzz.TARGETS)
    assert f"{sum(inputs) / 1e6:.1f} million" in PAGE
