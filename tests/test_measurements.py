"""What is measured and how: the verb ``benchmark``, networks in engines, sweeps of shapes, end-to-end runs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

import hardnet
from benchmarks import tables
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.candidates import Peer, build, cost, count_macs, images_of, network
from benchmarks.process import ChildError
from benchmarks.rows import BASELINE, OURS, PEERS, Row
from benchmarks.sweep import SHAPES, sweep_one
from hardnet.cli import main
from hardnet.engines.timing import settle

SHAPE = (1, 224, 224)


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


def test_a_precision_that_an_engine_lacks_is_not_a_failure() -> None:
    row = Row(OURS, "hardnet39ds", "torch", "int8", 1, 64, 64)
    with pytest.raises(NotImplementedError, match="torch engine has no int8"):
        build(row, threads=1, device="cpu", photographs=None)


# Candidates


def test_counts_agree_with_each_other_and_with_the_literature() -> None:
    """Two counters, one of them torch's; and ResNet-50's known 4.09 G, MobileNetV2's 0.30 G."""
    row = Row(OURS, "hardnet39ds", "eager", "fp32", *SHAPE)
    assert cost(row)["macs"] == count_macs(partial(network, row), 224, 224)
    known = {"resnet50": 4.09, "mobilenet_v2": 0.30}
    for source, name in PEERS[:2]:
        assert cost(Row(source, name, "eager", "fp32", *SHAPE))["macs"] / 1e9 == pytest.approx(known[name], abs=0.006)


@pytest.mark.parametrize(
    ("network", "first", "lowest"),
    [((BASELINE, "hardnet68"), 23.52, 23.52), (PEERS[0], 23.87, 19.14), (PEERS[-1], 20.7, 20.7)],
)
def test_reported_errors_come_from_the_catalogues(network: tuple[str, str], first: float, lowest: float) -> None:
    found = cost(Row(*network, "eager", "fp32", *SHAPE))
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
def test_a_sweep_compares_an_engine_with_eager_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.sweep.SHAPES", SHAPES[::9])
    row = sweep_one("hardnet39ds", "torch", "fp32")
    assert row["crashes"] == row["refused"] == []
    assert 0 < row["largest_deviation"] < row["tolerance"]
    assert row["outside_tolerance"] == 0
    assert "left_out" in sweep_one("hardnet39ds", "torch", "int8")


# End-to-end runs


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
