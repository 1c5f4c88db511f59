"""What is measured and how: ``hardnet benchmark``, and ``python -m benchmarks`` with its results and tables."""

import json
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import protocol, tables
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.networks import BASELINE, OURS, PEERS, Case, build, compared_groups, cost, images_of
from hardnet.cli import main

SHAPE = (1, 224, 224)
BASELINE_CASE = Case(BASELINE, "hardnet68", "eager", "fp32", *SHAPE)
PEER_CASE = Case("torchvision", "resnet50", "eager", "fp32", *SHAPE)
TORCH_CASE = Case(OURS, "hardnet68", "torch", "fp32", *SHAPE)
INT8_CASE = Case(OURS, "hardnet68", "openvino", "int8", *SHAPE)
SECONDS = {BASELINE_CASE: 0.08, PEER_CASE: 0.07, TORCH_CASE: 0.05, INT8_CASE: 0.02}
MEMORY = {"running_memory_mb": 500, "cuda_memory_mb": None}


def rows_of(*cases: Case) -> list[dict[str, Any]]:
    seconds = {case: [[SECONDS[case] * factor for factor in (1, 1.1, 0.9)]] * 2 for case in cases}
    return protocol.figures(seconds, dict.fromkeys(cases, MEMORY))


# hardnet benchmark


def test_the_verb_prints_a_row_per_engine(capsys: pytest.CaptureFixture[str]) -> None:
    command = "benchmark hardnet39ds --engines eager torch --precisions fp32 int8 --size 32 --rounds 2 --threads 1"
    assert main([*command.split(), "--turn-seconds", "0.01"]) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [row[:3] for row in rows] == [["hardnet39ds", name, "fp32"] for name in ("eager", "torch")]
    for _, engine, _, *figures in rows:
        median, lower, upper, speed, times = map(float, figures)
        assert 0 < lower <= median <= upper
        assert speed == pytest.approx(1000 / median, rel=0.02, abs=0.05)
        assert times == 1 or engine == "torch"
    left_out = [line.split(": ")[2] for line in err.splitlines() if "left out" in line]
    assert left_out == [f"hardnet39ds {name} int8" for name in ("eager", "torch")]


@pytest.mark.parametrize("arguments", ["hardnet99", "--size 16", "--device cuda:99"])
def test_wrong_arguments_are_refused(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *arguments.split()]) == 2
    assert benchmarks_main(["speed", *arguments.replace("--size 16", "--shapes 1x16").split()]) == 2
    assert capsys.readouterr().out == ""


# Networks


@pytest.mark.parametrize(
    ("network", "gigamacs", "first", "lowest"),
    [((BASELINE, "hardnet68"), 4.25, 23.52, 23.52), (PEERS[0], 4.09, 23.87, 19.14), (PEERS[-1], 7.07, 20.7, 20.7)],
)
def test_costs_are_those_of_the_literature(
    network: tuple[str, str], gigamacs: float, first: float, lowest: float
) -> None:
    facts = cost(*network)
    assert facts["macs"] / 1e9 == pytest.approx(gigamacs, abs=0.006)
    assert (facts["reported_top1_error"], facts["lowest_reported_top1_error"]) == (first, lowest)


def test_another_family_runs_in_our_engines() -> None:
    case = Case("torchvision", "mobilenet_v2", "eager", "fp32", *SHAPE)
    x = images_of((2, 64, 96), "cpu")
    with torch.inference_mode():
        expected = build(case, "cpu")(x)
        result = build(case._replace(engine="torch"), "cpu")(x)
    assert (result - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_training_step_changes_the_weights() -> None:
    step = build(Case(OURS, "hardnet39ds", "training", "fp32", 2, 32, 32), "cpu")
    before = step.network.base[0].conv.weight.clone()
    with torch.inference_mode():  # as engines are timed
        step(images_of((2, 32, 32), "cpu"))
    assert not torch.equal(step.network.base[0].conv.weight, before)


def test_a_group_is_one_engine_and_precision_and_the_baseline() -> None:
    shapes = [SHAPE, (8, 480, 480)]
    groups = compared_groups(["hardnet68"], ["eager", "torch", "openvino", "training"], ["fp32", "int8"], shapes)
    pairs = [{(case.engine, case.precision) for case in group if case.source == OURS} for group in groups]
    names = ("eager", "fp32"), ("torch", "fp32"), ("torch", "int8"), ("openvino", "fp32"), ("openvino", "int8")
    assert pairs == [{pair} for pair in (*names, ("training", "fp32"))]
    networks = [(case.source, case.model) for case in groups[0] if case.shape == SHAPE]
    assert networks == [(BASELINE, "hardnet68"), (OURS, "hardnet68"), *PEERS]
    assert {case.engine for case in groups[-1]} == {"training"}
    assert [len(group) for group in groups] == [16, 4, 4, 16, 16, 16]
    assert str(groups[0][-1]) == "timm:ese_vovnet39b eager fp32, batch 8, 480"


# Protocol


def test_turns_go_there_and_back_and_a_case_that_dies_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = []

    def ask(case: Case, device: str, method: str, *arguments: Any) -> Any:
        if method != "take":
            return MEMORY
        turns.append(case)
        if case == TORCH_CASE and turns.count(case) == 2:
            raise BrokenProcessPool("killed")
        return [SECONDS[case]]

    monkeypatch.setattr(protocol, "_ask", ask)
    monkeypatch.setattr(protocol, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    lines: list[str] = []
    rows = protocol.measure(list(SECONDS), 2, "cpu", lines.append)
    assert turns == [*SECONDS, *reversed(SECONDS)]
    assert [protocol.case_of(row) for row in rows] == [BASELINE_CASE, PEER_CASE, INT8_CASE]
    assert f"no figures for {TORCH_CASE}: BrokenProcessPool: killed" in lines


def test_figures_are_computed_from_the_times() -> None:
    rows = {protocol.case_of(row): row for row in rows_of(*SECONDS)}
    row = rows[TORCH_CASE]
    assert row["milliseconds"] == {"median": 50.0, "lower_quartile": 46.25, "upper_quartile": 53.75}
    assert row["images_per_second"] == 20.0
    assert row["times_baseline"] == 1.6  # 80 ms of pytorchcv over 50 ms
    assert row["rounds_ms"] == [50.0, 50.0]
    assert rows[PEER_CASE]["times_baseline"] is None


def test_rows_that_are_measured_again_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    results = protocol.open_results(path, "cpu", rounds=2)
    protocol.add_rows(results, rows_of(*SECONDS), path)
    assert path.read_text().count("\n") < len(SECONDS) + 15  # a row per line
    results = protocol.open_results(path, "cpu", rounds=2)
    protocol.add_rows(results, rows_of(TORCH_CASE), path)
    assert protocol.read_json(path) == results
    assert [row["times_baseline"] for row in results["rows"]] == [1.0, None, 4.0, None]  # the new one is the last
    protocol.write_json(path, {**results, "versions": {}})
    with pytest.raises(ValueError, match="of other versions"):
        protocol.open_results(path, "cpu")


@pytest.mark.slow
def test_a_network_is_measured_in_its_process() -> None:
    cases = [Case(OURS, "hardnet39ds", *pair, 1, 64, 64) for pair in (("eager", "fp32"), ("torch", "int8"))]
    lines: list[str] = []
    [row] = protocol.measure(cases, 1, "cpu", lines.append)
    assert 10 < row["running_memory_mb"] < 500
    assert any(line.startswith(f"no figures for {cases[1]}: NotImplementedError") for line in lines)


# Tables


def test_a_table_is_written_into_its_page_and_a_stale_one_is_named(tmp_path: Path) -> None:
    networks = {model: cost(source, model) for source, model in ((OURS, "hardnet68"), PEERS[0])}
    protocol.write_json(tmp_path / "run.json", {"networks": networks, "rows": rows_of(*SECONDS)})
    page = tmp_path / "README.md"
    page.write_text(
        "<!-- generated: speed run.json 1 224 baseline openvino-int8 torch -->\nold\n<!-- end of generated -->\n"
        "<!-- generated: models run.json --><!-- end of generated -->\n".replace("--><", "-->\n<")
    )
    [(path, text)] = tables.stale([page], tmp_path).items()
    assert "| `hardnet68` | 80.0 | 20.0 (4.00x) | 50.0 (1.60x) |\n| `resnet50` | - | - | - |\n" in text
    assert "\n| `hardnet68` | 23.5 | 23.5 | 4.25 | - | - | - | 20.0 |\n| `resnet50` | 23.9 | 19.1 | 4.09 |" in text
    assert "old" not in text
    path.write_text(text)
    assert tables.stale([page], tmp_path) == {}


def test_the_pages_show_the_committed_results() -> None:
    assert any(tables.BLOCK.search(path.read_text(encoding="utf-8")) for path in tables.PAGES)
    assert not tables.stale(tables.PAGES, tables.RESULTS), "run python -m benchmarks tables"


# Folders


def test_an_end_to_end_run_measures_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "end-to-end hardnet39ds --images 4 --pixels 640x480 --engines eager --decode exact fast"
    assert benchmarks_main([*command.split(), "--json", str(tmp_path / "end.json")]) == 0
    assert "| `hardnet39ds` | eager | 640 x 480 | fast |" in capsys.readouterr().out
    row, _ = json.loads((tmp_path / "end.json").read_text())["rows"]
    assert all(row[part] > 0.1 for part in ("images_per_second", "decode_ms", "preprocess_ms", "model_ms"))
