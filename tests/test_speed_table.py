"""Tables and pictures from results, and the documents that must not drift away from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_results import made_results
from PIL import Image

from benchmarks import end_to_end, tables
from benchmarks.plot import draw
from tools import speed_table

DOCUMENT = """# Text

<!-- generated: speed run.json -->
old
<!-- end of generated -->

between

<!-- generated: all -->
<!-- end of generated -->
"""


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return made_results()


@pytest.fixture
def folder(tmp_path: Path, results: dict[str, Any]) -> Path:
    (tmp_path / "run.json").write_text(json.dumps(results))
    return tmp_path


def test_the_speed_table_has_a_line_per_model_and_a_column_per_engine(results: dict[str, Any]) -> None:
    assert tables.speed_table(results).splitlines() == [
        "| ms, batch 1, 224 x 224 | pytorchcv, eager | torch | OpenVINO int8 |",
        "|---|---:|---:|---:|",
        "| `hardnet68` | 80.0 | 50.0 (1.60x) | 20.0 (4.00x) |",
    ]


def test_the_full_table_has_every_row(results: dict[str, Any]) -> None:
    text = tables.full_table(results)
    lines = text.splitlines()
    assert lines[3].startswith("| torchvision:resnet50 | eager | fp32 | 1 | 224 | 70.0 | ")
    assert lines[4] == (
        "| hardnet68 | torch | fp32 | 1 | 224 | 50.0 | 46.2 to 53.8 | 20.0 | 1.60 | 160% | 500 | 1,700 |"
    )
    assert "pytorchcv:hardnet68 | eager | fp32 | 1 | 1024 |" in text
    assert "floor for batch 1, 1024: 100 GFLOP/s, float32 matrices of 2048 x 2048 multiplied by torch.mm" in text


def test_the_terminal_names_what_is_missing(results: dict[str, Any]) -> None:
    failed = [{"row": "hardnet68 torch fp32, batch 1, 224", "reason": "killed by SIGSEGV"}]
    left_out = [{"row": "timm:ese_vovnet39b", "reason": "No module named 'timm'"}]
    text = tables.for_terminal({**results, "failed": failed, "left_out": left_out})
    assert "failed: hardnet68 torch fp32, batch 1, 224: killed by SIGSEGV" in text
    assert "left out: timm:ese_vovnet39b: No module named 'timm'" in text
    assert tables.for_terminal({"rows": [], "floors": [], "failed": failed, "left_out": []}).startswith("nothing")


def test_blocks_are_written_and_drift_is_found(folder: Path) -> None:
    document = folder / "README.md"
    document.write_text(DOCUMENT)
    [(path, text)] = speed_table.stale([document], folder).items()
    assert "old" not in text
    assert "50.0 (1.60x)" in text
    assert "### run.json" in text
    assert "between" in text
    path.write_text(text)
    assert speed_table.stale([document], folder) == {}

    document.write_text(text.replace("1.60x", "1.61x"))  # a figure that was touched by hand
    assert speed_table.stale([document], folder) == {document: text}
    document.write_text(text)
    run = json.loads((folder / "run.json").read_text())
    run["rows"][0]["milliseconds"]["median"] = 123.0  # a new run, and the document not written again
    (folder / "run.json").write_text(json.dumps(run))
    assert "123" in speed_table.stale([document], folder)[document]


@pytest.mark.parametrize(
    ("marker", "said"), [("speed none.json", "none.json, which is not in"), ("slow x", "known: all")]
)
def test_markers_that_mean_nothing_are_refused(folder: Path, marker: str, said: str) -> None:
    text = f"<!-- generated: {marker} -->\n<!-- end of generated -->\n"
    with pytest.raises(ValueError, match=said):
        speed_table.updated(text, folder)
    example = f"```\n{text}```\n"
    assert speed_table.updated(example, folder) == example


def test_other_kinds_of_results_have_tables(folder: Path, results: dict[str, Any]) -> None:
    surroundings = {key: results[key] for key in ("date", "machine", "versions")}
    part = {"wall_ms": 2.0, "processor_ms": 4.0}
    row = {"model": "hardnet68", "engine": "torch", "precision": "fp32", "batch_size": 32, "images_per_second": 25.0}
    row |= {"decode": part, "preprocess": part, "model_alone": part, "whole": {"processor_ms": 16.0}, "model_runs": 0.5}
    end = {"kind": "end to end", **surroundings, "protocol": {"images": 2000}, "rows": [row], "left_out": []}
    (folder / "end.json").write_text(json.dumps(end))
    start = {"kind": "start", **surroundings, "protocol": {"best_of": 5}, "rows": [{"what": "x", "its_ms": None}]}
    (folder / "start.json").write_text(json.dumps(start))
    text = speed_table.render("all", folder)
    assert "| hardnet68 | torch | fp32 | 32 | 25.0 | 50% | 4.0 (25%) | 4.0 (25%) | 8.0 (50%) | 16.0 | 500.0 |" in text
    assert "| x | - |" in text
    assert text.index("### end.json") < text.index("### run.json") < text.index("### start.json")
    assert end_to_end.for_terminal(end).splitlines()[1].split()[:5] == ["hardnet68", "torch", "fp32", "32", "25.0"]


def test_the_documents_say_what_the_committed_results_say() -> None:
    blocks = [speed_table.BLOCK.search(path.read_text(encoding="utf-8")) for path in speed_table.DOCUMENTS]
    assert any(blocks)  # the markers are there
    stale = speed_table.stale(speed_table.DOCUMENTS, speed_table.RESULTS)
    assert not stale, f"run python tools/speed_table.py: {', '.join(path.name for path in stale)}"


def test_the_check_has_an_exit_status(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = folder / "README.md"
    document.write_text(DOCUMENT)
    for name, value in (("ROOT", folder), ("RESULTS", folder), ("DOCUMENTS", (document,))):
        monkeypatch.setattr(speed_table, name, value)
    assert speed_table.main(["--check"]) == 1
    assert document.read_text() == DOCUMENT
    assert [speed_table.main(arguments) for arguments in ([], ["--check"])] == [0, 0]


def test_the_picture_shows_rows_with_a_reported_error(results: dict[str, Any], tmp_path: Path) -> None:
    draw(results, tmp_path / "folder" / "speed.png")
    with Image.open(tmp_path / "folder" / "speed.png") as picture:
        assert picture.size == (960, 660)
        assert min(low < high for low, high in picture.convert("RGB").getextrema())
    without = [{**row, "reported_top1_error": None} for row in results["rows"]]
    with pytest.raises(ValueError, match="nothing to draw"):
        draw({**results, "rows": without}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_picture_has_a_line_per_engine(results: dict[str, Any]) -> None:
    from benchmarks.plot import series

    rows = [row for row in results["rows"] if row["reported_top1_error"] is not None and row["height"] == 224]
    assert list(series(rows)) == ["pytorchcv, eager", "torchvision:resnet50, eager", "hardnet, torch"]
