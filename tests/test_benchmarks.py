"""Benchmarks in rounds: the order of turns, failures, figures, files and tables, and the commands."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import rounds, tables
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.process import Child, ChildError, LeftOut
from benchmarks.results import as_results, figures, row_of, surroundings_of, write_json
from benchmarks.rounds import Outcome, Protocol, measure
from benchmarks.rows import BASELINE, OURS, PEERS, Row, plan

REPO = Path(__file__).parent.parent
SHAPE = (1, 224, 224)
BASELINE_ROW = Row(BASELINE, "hardnet68", "eager", "fp32", *SHAPE)
PEER_ROW = Row("torchvision", "resnet50", "eager", "fp32", *SHAPE)
TORCH_ROW = Row(OURS, "hardnet68", "torch", "fp32", *SHAPE)
INT8_ROW = Row(OURS, "hardnet68", "openvino", "int8", *SHAPE)
SECONDS = {BASELINE_ROW: 0.08, PEER_ROW: 0.07, TORCH_ROW: 0.05, INT8_ROW: 0.02}
ROWS = list(SECONDS)
QUICK = Protocol(rounds=2, pause_seconds=0)


class FakeWorker:
    """Reports ``SECONDS`` for each pass, and logs what happens to it; dies at the turn numbered ``dies``."""

    def __init__(self, row: Row, log: list[tuple[str, Row]], dies: int | None = None) -> None:
        self.row, self.log, self.dies, self.turns = row, log, dies, 0
        self.ask("build")

    def ask(self, method: str, *arguments: Any) -> Any:
        self.log.append((method, self.row))
        if self.dies == self.turns:
            raise ChildError("killed by SIGSEGV")
        if method == "take":
            self.turns += 1
            return [SECONDS[self.row] * factor for factor in (1, 1.1, 0.9)]
        return {"running_memory_mb": 500, "building_memory_mb": 1700, "cuda_memory_mb": None, "idle_cores": 0.0}

    def close(self) -> None:
        self.log.append(("close", self.row))


def fakes(log: list[tuple[str, Row]], dies: dict[Row, int] | None = None) -> Callable[[Row, Protocol], Any]:
    return lambda row, protocol: FakeWorker(row, log, (dies or {}).get(row))


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Results of two groups, 224 x 224 and 1024 x 1024."""
    first = measure(ROWS, QUICK, start=fakes([]))
    large = [Outcome(Row(**{**vars(o.row), "height": 1024, "width": 1024}), o.facts, o.rounds) for o in first[:2]]
    return as_results([first, large], QUICK, surroundings_of("cpu"))


# Rounds


def test_all_are_built_before_they_take_turns_there_and_back() -> None:
    log: list[tuple[str, Row]] = []
    measure(ROWS, Protocol(rounds=3, pause_seconds=0), start=fakes(log))
    assert {row for what, row in log[: len(ROWS)] if what == "build"} == set(ROWS)
    assert [row for what, row in log if what == "take"] == [*ROWS, *reversed(ROWS), *ROWS]
    assert {row for what, row in log if what == "close"} == set(ROWS)


@pytest.mark.parametrize("turn", [0, 1], ids=["while it is built", "in its second turn"])
def test_a_row_that_dies_is_named_and_the_others_go_on(turn: int) -> None:
    outcomes = measure(ROWS, QUICK, start=fakes([], {TORCH_ROW: turn}))
    by_row = {outcome.row: outcome for outcome in outcomes}
    assert by_row[TORCH_ROW].failed == "killed by SIGSEGV"
    assert not by_row[TORCH_ROW].measured
    assert all(len(o.rounds) == 2 and o.measured for row, o in by_row.items() if row != TORCH_ROW)
    assert [figure["engine"] for figure in figures(outcomes)] == ["eager", "eager", "openvino"]


def test_a_child_answers_and_its_death_is_reported() -> None:
    child = Child(list, ((1, 2, 2),), 60)
    assert child.ask("count", 2) == 2
    os.kill(child.process.pid or 0, signal.SIGKILL)
    with pytest.raises(ChildError, match=r"killed by SIGKILL \(out of memory\?\)"):
        child.ask("count", 1)
    child.close()
    for make, arguments, kind, said in (
        (import_module, ("no_such_module",), LeftOut, "No module named"),
        (int, ("many",), ChildError, "ValueError: invalid literal"),
    ):
        with pytest.raises(kind, match=said):
            Child(make, arguments, 60)


@pytest.mark.slow
def test_a_network_is_measured_in_its_process() -> None:
    tiny = Row(OURS, "hardnet39ds", "eager", "fp32", 1, 64, 64)
    [outcome] = measure([tiny], Protocol(rounds=1, turn_seconds=0.02, threads=1))
    assert outcome.measured
    assert 10 < outcome.facts["running_memory_mb"] < 500


def test_a_row_is_not_started_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "available", lambda: 700.0)
    log: list[tuple[str, Row]] = []
    [outcome] = measure([TORCH_ROW], QUICK, start=fakes(log))
    assert "700 MB" in (outcome.failed or "")
    assert log == []


def test_the_plan_has_a_group_per_engine_and_precision() -> None:
    shapes = [(1, 224, 224), (8, 480, 640)]
    groups = plan(["hardnet68"], ["eager", "torch", "openvino"], ["fp32", "int8"], shapes)
    names = [{(row.engine, row.precision) for row in group if row.source == OURS} for group in groups]
    assert names == [
        *({("eager", "fp32")}, {("torch", "fp32")}, {("torch", "int8")}),
        *({("openvino", "fp32")}, {("openvino", "int8")}),
    ]
    first = [row for row in groups[-1] if row.shape == shapes[0]]
    assert [row.name for row in first] == [
        *("pytorchcv:hardnet68", "hardnet68"),
        *(f"{source}:{model}" for source, model in PEERS),
    ]
    assert [row.size for row in groups[-1]] == ["224"] + ["480x640"] + ["224"] * 7 + ["480x640"] * 7
    assert len(groups[1]) == 4  # torch: ours only
    assert len(plan(["hardnet68"], ["eager"], ["fp32"], shapes[:1], False)[0]) == 1


# Figures and files


def test_figures_are_computed_from_the_times() -> None:
    found = {(f["source"], f["precision"]): f for f in figures(measure(ROWS, QUICK, start=fakes([])))}
    ours = found["hardnet", "fp32"]
    assert ours["milliseconds"] == {"median": 50.0, "lower_quartile": 46.25, "upper_quartile": 53.75}
    assert ours["images_per_second"] == 20.0
    assert ours["times_baseline"] == 1.6  # 80 ms of pytorchcv over 50 ms
    assert ours["rounds_ms"] == [50.0, 50.0]
    assert found["torchvision", "fp32"]["times_baseline"] is None
    larger = [replace(row, height=1024, width=1024) for row in ROWS]
    by_row = {row_of(f): f for f in figures(measure([*ROWS, *larger], QUICK, start=fakes([])))}
    assert by_row[TORCH_ROW]["times_baseline"] == by_row[larger[2]]["times_baseline"] == 1.6
    [alone] = figures(measure([TORCH_ROW], QUICK, start=fakes([])))
    assert alone["times_baseline"] is None


def test_results_replace_the_rows_that_were_measured_again(results: dict[str, Any]) -> None:
    again = as_results([measure([TORCH_ROW], QUICK, start=fakes([]))], QUICK, surroundings_of("cpu"), results)
    found = {row_of(row): row for row in again["rows"]}
    assert len(found) == len(again["rows"]) == len(results["rows"])
    assert found[TORCH_ROW]["times_baseline"] is None
    assert found[BASELINE_ROW]["times_baseline"] == 1
    with pytest.raises(ValueError, match="another processor"):
        as_results([], QUICK, surroundings_of("cpu"), {**results, "versions": {}})


def test_the_file_is_whole_or_unchanged(results: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    write_json(path, results)
    assert json.loads(path.read_text()) == results
    assert "[50.0, 50.0]" in path.read_text()  # the rounds on one line
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"not": float("nan")})
    assert json.loads(path.read_text()) == results
    with pytest.raises(ValueError, match="cannot be written"):
        write_json(path / "below a file.json", results)


def test_tables_show_the_figures(results: dict[str, Any]) -> None:
    assert tables.speed_table(results, "1", "224", "openvino-int8", "torch").splitlines() == [
        "| ms, batch 1, 224 x 224 | pytorchcv, eager | OpenVINO int8 | torch |",
        "|---|---:|---:|---:|",
        "| `hardnet68` | 80.0 | 20.0 (4.00x) | 50.0 (1.60x) |",
        "| `resnet50` | - | - | - |",
    ]
    assert "| `resnet50` | - | 70.0 |" in tables.speed_table(results, "1", "224", "eager")
    assert "pytorchcv, eager | torch | OpenVINO int8 |" in tables.speed_table(results).splitlines()[0]
    models = tables.models_table(results).splitlines()
    assert models[2] == "| `hardnet68` | 23.5 | 23.5 | 4.25 | - | - | - | 20.0 |"
    assert models[3] == "| `resnet50` | 23.9 | 19.1 | 4.09 | - | - | - | - |"
    failed = [{"row": "hardnet68 torch fp32, batch 1, 224", "reason": "killed by SIGSEGV"}]
    terminal = tables.for_terminal({**results, "failed": failed})
    assert "failed: hardnet68 torch fp32, batch 1, 224: killed by SIGSEGV" in terminal
    assert "pytorchcv:hardnet68" in terminal


def test_a_table_that_differs_from_the_results_is_found(results: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(results))
    document = tmp_path / "README.md"
    document.write_text("<!-- generated: speed run.json -->\nold\n<!-- end of generated -->\n\nkept\n")
    [(path, text)] = tables.stale([document], tmp_path).items()
    assert "old" not in text
    assert "50.0 (1.60x)" in text
    assert text.endswith("kept\n")
    path.write_text(text)
    assert tables.stale([document], tmp_path) == {}
    document.write_text(text.replace("1.60x", "1.61x"))
    assert tables.stale([document], tmp_path) == {document: text}
    for wrong in ("speed none.json", "slow x"):
        with pytest.raises(ValueError, match=wrong.split()[-1 if "none" in wrong else 0]):
            tables.render(wrong, tmp_path)


# Commands


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("speed hardnet99", "no model 'hardnet99'"),
        ("speed --shapes 1x16", "at least 32"),
        ("speed --turn-seconds 0", "turn_seconds"),
        ("end-to-end --device cuda:99", "device"),
        ("end-to-end --photographs no/such/folder", "no/such/folder"),
    ],
)
def test_the_measurements_refuse_wrong_arguments(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks_main(arguments.split()) == 2
    assert said in capsys.readouterr().err


def test_a_failed_row_makes_the_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.__main__.measure", partial(measure, start=fakes([], {TORCH_ROW: 0})))
    assert benchmarks_main(["speed", "hardnet68", "--engines", "torch", "--no-peers", "--rounds", "1"]) == 1
    assert f"failed: {TORCH_ROW}: killed by SIGSEGV" in capsys.readouterr().out


def test_the_gpu_command_runs_dry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Row] = []

    def fake(rows: list[Row], protocol: Protocol, say: Callable[[str], None]) -> list[Outcome]:
        seen.extend(rows)
        monkeypatch.setitem(SECONDS, rows[0], 0.05)
        return measure(rows, QUICK, start=fakes([]))

    monkeypatch.setattr("benchmarks.__main__.measure", fake)
    assert benchmarks_main(["gpu", "--dry-run"]) == 0
    assert [(row.engine, row.precision) for row in seen] == [
        ("eager", "fp32"),
        *((engine, precision) for engine in ("torch",) for precision in ("fp32", "fp16", "bf16")),
    ]
    assert "| `hardnet39ds` | - | 50.0 |" in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert benchmarks_main(["gpu"]) == 2
