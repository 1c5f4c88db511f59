"""The benchmark's order, figures and failures, with workers whose times are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_results import (
    BASELINE_ROW,
    FLOOR_ROW,
    INT8_ROW,
    PEER_ROW,
    ROWS,
    TORCH_ROW,
    dying_start,
    fake_start,
    made_results,
)

from benchmarks import Protocol, Row, measure, plan
from benchmarks import rounds as rounds_module
from benchmarks.results import write_json
from benchmarks.summary import Spread, figures, floor_rate

QUICK = Protocol(rounds=2, pause_seconds=0)


def test_all_are_built_before_they_take_turns_there_and_back() -> None:
    log: list[tuple[str, Row]] = []
    measure(ROWS, Protocol(rounds=3, pause_seconds=0), start=fake_start(log))
    built, turns = log[: len(ROWS)], [row for what, row in log if what == "turn"]
    assert built == [("build", row) for row in ROWS]
    assert turns == [*ROWS, *reversed(ROWS), *ROWS]
    assert sorted(str(row) for what, row in log if what == "close") == sorted(map(str, ROWS))


@pytest.mark.parametrize("turns", [0, 1], ids=["while it is built", "in its second turn"])
def test_a_row_that_dies_is_named_and_the_others_go_on(turns: int) -> None:
    victim = TORCH_ROW
    outcomes = measure(ROWS, QUICK, start=dying_start([], victim, turns if turns else -1))
    by_row = {outcome.row: outcome for outcome in outcomes}
    assert by_row[victim].failed == "killed by SIGSEGV"
    assert not by_row[victim].measured
    assert all(len(outcome.rounds) == 2 and outcome.measured for row, outcome in by_row.items() if row != victim)
    assert [figure["engine"] for figure in figures(outcomes)] == ["eager", "eager", "openvino"]


def test_figures_are_worked_out_from_the_times() -> None:
    outcomes = measure(ROWS, QUICK, start=fake_start([]))
    assert floor_rate(outcomes) == pytest.approx(1e11)  # 10 GFLOP in 0.1 s
    found = {(figure["source"], figure["precision"]): figure for figure in figures(outcomes)}
    ours = found["hardnet", "fp32"]
    assert ours["milliseconds"] == {"median": 50.0, "lower_quartile": 46.25, "upper_quartile": 53.75}
    assert ours["images_per_second"] == 20.0
    assert ours["times_baseline"] == 1.6  # 80 ms of pytorchcv over 50 ms
    assert ours["share_of_floor"] == 1.6  # 8 GFLOP would take 80 ms at 100 GFLOP/s
    assert ours["rounds_ms"] == [[50.0, 55.0, 45.0]] * 2
    assert found["pytorchcv", "fp32"]["times_baseline"] == 1.0
    assert found["torchvision", "fp32"]["times_baseline"] is None
    assert len(found) == len(ROWS) - 1  # the floor is no row of the table


def test_without_baseline_and_floor_there_are_no_ratios() -> None:
    [figure] = figures(measure([TORCH_ROW], QUICK, start=fake_start([])))
    assert figure["times_baseline"] is None
    assert figure["share_of_floor"] is None


def test_quartiles() -> None:
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.25, 1.75)


def test_the_plan_has_a_group_per_batch_size_and_resolution() -> None:
    groups = plan(["hardnet68"], ["eager", "openvino"], ["fp32", "int8"], [1, 8], [(224, 224), (480, 640)], ["eager"])
    assert [(g[0].batch_size, g[0].size) for g in groups] == [(1, "224"), (8, "224"), (1, "480x640"), (8, "480x640")]
    for group in groups:
        assert len({(row.batch_size, row.size) for row in group}) == 1
        assert [(row.name, row.engine, row.precision) for row in group] == [
            ("floor:matrix product", "torch", "fp32"),
            ("pytorchcv:hardnet68", "eager", "fp32"),
            ("torchvision:resnet50", "eager", "fp32"),
            ("torchvision:mobilenet_v2", "eager", "fp32"),
            ("timm:ese_vovnet39b", "eager", "fp32"),
            ("hardnet68", "eager", "fp32"),
            ("hardnet68", "openvino", "fp32"),
            ("hardnet68", "openvino", "int8"),
        ]
    assert len(plan(["hardnet68"], ["eager"], ["fp32"], [1], [(224, 224)], [])[0]) == 2
    with pytest.raises(ValueError, match="no model 'hardnet99'"):
        plan(["hardnet99"], ["eager"], ["fp32"], [1], [(224, 224)])


@pytest.mark.parametrize(
    "wrong",
    [
        {"rounds": 0},
        {"turn_seconds": 0},
        {"turn_seconds": float("nan")},
        {"turn_seconds": float("inf")},
        {"pause_seconds": -1},
        {"pause_seconds": float("inf")},
        {"threads": 0},
    ],
)
def test_a_protocol_without_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Protocol(**wrong)  # type: ignore[arg-type]


def test_a_row_is_not_started_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds_module, "available", lambda: 700.0)
    log: list[tuple[str, Row]] = []
    [outcome] = measure([TORCH_ROW], QUICK, start=fake_start(log))
    assert outcome.failed == "only 700 MB of memory are left: measure fewer rows at once"
    assert log == []


def test_the_file_holds_everything_and_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, results = tmp_path / "new" / "results.json", made_results()
    write_json(path, results)
    assert json.loads(path.read_text()) == results
    assert set(results) == {
        *("kind", "date", "machine", "versions", "protocol", "floors", "rows", "left_out", "failed"),
    }
    assert {row["height"] for row in results["rows"]} == {224, 1024}
    assert results["floors"][0]["gflops"] == 100.0
    assert results["protocol"]["rounds"] == 2
    assert results["machine"]["cores"] >= 1
    assert "torch" in results["versions"]
    assert "[50.0, 55.0, 45.0]" in path.read_text()  # a round per line

    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match="No space left on device"):
        write_json(path, {"other": 1})
    assert json.loads(path.read_text()) == results
    assert list(path.parent.iterdir()) == [path]


def test_rows_print_themselves() -> None:
    assert str(INT8_ROW) == "hardnet68 openvino int8, batch 1, 224"
    assert (BASELINE_ROW.name, PEER_ROW.name) == ("pytorchcv:hardnet68", "torchvision:resnet50")
    assert FLOOR_ROW.size == "224"
