"""The verb ``benchmark``, the measurements in benchmarks/, and the pictures and tables made from their results."""

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
from PIL import Image

import hardnet
from benchmarks import pictures as speed_pictures
from benchmarks import rounds, tables
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.candidates import Peer, build, cost, count_macs, images_of, network
from benchmarks.process import Child, ChildError, LeftOut
from benchmarks.results import as_results, figures, row_of, surroundings_of, write_json
from benchmarks.rounds import Outcome, Protocol, measure
from benchmarks.rows import BASELINE, OURS, PEERS, Row, plan
from benchmarks.sweep import SHAPES, sweep_one
from hardnet.cli import main
from hardnet.cli.benchmark import settle
from hardnet.models.config import CONFIGS, stage_indices
from hardnet.models.layers import HarDBlock
from tools import pictures

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
        assert row["images_per_second"] == pytest.approx(1000 / row["median_ms"], rel=0.02, abs=0.05)
    assert [reason.split(":")[0] for reason in results["left_out"]] == [
        "hardnet39ds eager int8",
        "hardnet39ds torch int8",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("hardnet99", "hardnet99"),
        ("--size 16", "32"),
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


def test_a_precision_that_an_engine_lacks_is_not_a_failure() -> None:
    row = Row(OURS, "hardnet39ds", "torch", "int8", 1, 64, 64)
    with pytest.raises(NotImplementedError, match="torch engine has no int8"):
        build(row, threads=1, device="cpu", photographs=None)


def test_a_row_is_not_started_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "available", lambda: 700.0)
    log: list[tuple[str, Row]] = []
    [outcome] = measure([TORCH_ROW], QUICK, start=fakes(log))
    assert "700 MB" in (outcome.failed or "")
    assert log == []


def test_the_plan_has_a_group_per_engine_and_precision() -> None:
    shapes = [(1, 224, 224), (8, 480, 640)]
    groups = plan(["hardnet68"], ["eager", "torch", "inductor", "openvino"], ["fp32", "int8"], shapes)
    names = [{(row.engine, row.precision) for row in group if row.source == OURS} for group in groups]
    assert names == [
        *({("eager", "fp32")}, {("torch", "fp32")}, {("torch", "int8")}),
        *({("inductor", "fp32")}, {("inductor", "fp32")}, {("inductor", "int8")}, {("inductor", "int8")}),
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


def test_the_documents_show_the_committed_results() -> None:
    assert any(tables.BLOCK.search(path.read_text(encoding="utf-8")) for path in tables.DOCUMENTS)
    stale = [path.name for path in tables.stale(tables.DOCUMENTS, tables.RESULTS)]
    assert not stale, "run python -m benchmarks tables"


# Candidates


def test_counts_agree_with_each_other_and_with_the_literature() -> None:
    """Two counters, one of them torch's; and ResNet-50's known 4.09 G, MobileNetV2's 0.30 G."""
    row = Row(OURS, "hardnet39ds", "eager", "fp32", *SHAPE)
    assert cost(row)["macs"] == count_macs(partial(network, row), 224, 224)
    known = {"resnet50": 4.09, "mobilenet_v2": 0.30}
    for source, name in PEERS[:2]:
        assert cost(Row(source, name, "eager", "fp32", *SHAPE))["macs"] / 1e9 == pytest.approx(known[name], abs=0.006)


@pytest.mark.parametrize(
    ("row", "first", "lowest"),
    [(BASELINE_ROW, 23.52, 23.52), (PEER_ROW, 23.87, 19.14), (Row(*PEERS[-1], "eager", "fp32", *SHAPE), 20.7, 20.7)],
)
def test_reported_errors_come_from_the_catalogues(row: Row, first: float, lowest: float) -> None:
    found = cost(row)
    assert (found["reported_top1_error"], found["lowest_reported_top1_error"]) == (first, lowest)


def test_another_family_runs_in_our_engines() -> None:
    row = Row("torchvision", "mobilenet_v2", "onnxruntime", "fp32", 1, 64, 64)
    model = network(row)
    settle(model, 64, 64)
    x = images_of((2, 64, 96), "cpu")
    with torch.inference_mode():
        wanted = model.eval()(x)
        found = hardnet.accelerate(Peer("mobilenet_v2", model), engine="torch")(x)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_pytorchcv_accepts_other_sizes() -> None:
    row = Row(BASELINE, "hardnet39ds", "eager", "fp32", 2, 96, 64)
    output = build(row, threads=1, device="cpu", photographs=None)(images_of(row.shape, "cpu"))
    assert isinstance(output, torch.Tensor)
    assert output.shape == (2, 1000)
    assert output.isfinite().all()


# Sweep


class CrashingChild:
    """Crashes at two shapes, refuses one, and gives no number for another."""

    def __init__(self, *_: object) -> None:
        pass

    def ask(self, method: str, *shape: int, timeout: float) -> float | str:
        index = SHAPES.index(shape)
        if index in (3, 40):
            raise ChildError("killed by SIGSEGV")
        return "too small" if index == 5 else float("nan") if index == 9 else 1e-5

    def close(self) -> None:
        pass


def test_a_sweep_goes_on_after_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.sweep.Child", CrashingChild)
    row = sweep_one("hardnet39ds", "openvino", "fp32")
    assert row["crashes"] == [f"{batch} x {side}: killed by SIGSEGV" for batch, side in (SHAPES[3], SHAPES[40])]
    assert row["refused"] == ["too small"]
    assert row["outside_tolerance"] == 1  # NaN
    assert "| OpenVINO | 64 | 2 | 1 | 1 | 0.0001 | 1.0e-05 |" in tables.sweep_table({"rows": [row]})


@pytest.mark.slow
def test_a_sweep_compares_an_engine_with_eager_mode() -> None:
    row = sweep_one("hardnet39ds", "torch", "fp32")
    assert row["crashes"] == row["refused"] == []
    assert 0 < row["largest_deviation"] < row["tolerance"]
    assert row["outside_tolerance"] == 0
    assert "left_out" in sweep_one("hardnet39ds", "torch", "int8")


# Photographs and end-to-end runs


def test_an_end_to_end_run_measures_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = (
        f"end-to-end hardnet39ds --images 6 --batch-sizes 2 --engines eager --threads 1 --json {tmp_path}/end.json"
    )
    assert benchmarks_main(command.split()) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["hardnet39ds", "eager", "fp32", "2"]
    [figures] = json.loads((tmp_path / "end.json").read_text())["rows"]
    assert figures["images"] == 6
    assert figures["images_per_second"] == pytest.approx(1000 / figures["whole"]["wall_ms"], rel=0.02, abs=0.01)
    for part in ("decode", "preprocess", "model_alone"):
        assert 0.1 < figures[part]["processor_ms"] < figures["whole"]["processor_ms"] * 1.5
    assert 0 < figures["model_runs"] < 1


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
        *((engine, precision) for engine in ("torch", "inductor") for precision in ("fp32", "fp16", "bf16")),
    ]
    assert "| `hardnet39ds` | - | 50.0 |" in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert benchmarks_main(["gpu"]) == 2
