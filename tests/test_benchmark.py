"""The benchmark as a command, with real worker processes in a tiny setting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from made_results import FLOOR_ROW, TORCH_ROW, FakeWorker, dying_start
from pictures import one_torch_thread
from PIL import Image
from torch import nn

from benchmarks import Protocol, Row, measure
from benchmarks import __main__ as benchmark_cli
from benchmarks.candidates import build, count_macs, macs, network, reported_top1_error, settle
from benchmarks.end_to_end import measure_folder
from benchmarks.matrix_product import fastest_product
from benchmarks.memory import peak_resident, reset_peak
from benchmarks.photographs import calibration_images, find_photographs, write_jpegs
from benchmarks.process import LeftOut, Worker, WorkerError
from benchmarks.rows import OURS, PEERS
from hardnet.cli import main
from hardnet.utils.errors import ImageError

TINY = Row(OURS, "hardnet39ds", "eager", "fp32", 1, 64, 64)
HANG = 300.0
"""Seconds, after which a worker that says nothing fails its test."""


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


def worker(row: Row) -> Worker:
    return Worker(row, threads=1, device="cpu", photographs=None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, dict[str, Any], Path]:
    """The smallest run of the command: exit status, standard output, JSON and the picture."""
    folder = tmp_path_factory.mktemp("benchmark")
    command = "benchmark hardnet39ds --engines eager torch --sizes 64 --rounds 2 --turn-seconds 0.05 --threads 1"
    files = ["--no-peers", "--json", "run.json", "--plot", "run.png"]
    arguments = [sys.executable, "-m", "hardnet", *command.split(), *files]
    result = subprocess.run(arguments, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.returncode, result.stdout, json.loads((folder / "run.json").read_text()), folder / "run.png"


def test_the_command_prints_a_line_per_row(run: tuple[int, str, dict[str, Any], Path]) -> None:
    _, out, results, _ = run
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["model", "engine", "precision", "batch"]
    assert [line.split()[:2] for line in lines[1:3]] == [["hardnet39ds", "eager"], ["hardnet39ds", "torch"]]
    assert f"{results['floors'][0]['gflops']:.0f} GFLOP/s" in lines[4]


def test_the_file_has_figures_that_fit_together(run: tuple[int, str, dict[str, Any], Path]) -> None:
    results = run[2]
    assert results["failed"] == results["left_out"] == []
    assert (results["protocol"]["rounds"], results["protocol"]["threads"]) == (2, 1)
    [floor] = results["floors"]
    assert len(results["rows"]) == 2
    for row in results["rows"]:
        spread, times = row["milliseconds"], [time for times in row["rounds_ms"] for time in times]
        assert len(row["rounds_ms"]) == 2
        assert min(times) <= spread["lower_quartile"] <= spread["median"] <= spread["upper_quartile"] <= max(times)
        assert row["images_per_second"] == pytest.approx(1000 / spread["median"], rel=0.01)
        share = 2 * row["macs"] / (floor["gflops"] * 1e9) / (spread["median"] / 1000)
        assert row["share_of_floor"] == pytest.approx(share, rel=0.02)
        assert 100 < row["running_memory_mb"] < 5000
        assert row["building_memory_mb"] >= 0.9 * row["running_memory_mb"]
        assert row["reported_top1_error"] == 27.92
        # A worker must sleep while it is not its turn. A thread that spins would use a core of its own.
        assert row["idle_cores"] < 0.2


def test_the_command_draws_the_picture(run: tuple[int, str, dict[str, Any], Path]) -> None:
    with Image.open(run[3]) as picture:
        assert picture.size == (960, 660)


def test_a_worker_that_is_killed_is_reported_with_its_row() -> None:
    """The real thing: SIGKILL between two turns of one worker, while the other goes on."""
    started: dict[Row, Worker] = {}

    def start(row: Row, protocol: Protocol) -> Worker | FakeWorker:
        if row != TINY:
            return FakeWorker(row, [])
        started[row] = worker(row)
        return started[row]

    def say(text: str) -> None:
        if text == "round 2 of 3":
            os.kill(started[TINY].pid, signal.SIGKILL)

    outcomes = measure([TINY, TORCH_ROW], Protocol(rounds=3, turn_seconds=0.02, threads=1), say, start)
    assert outcomes[0].failed == "killed by SIGKILL (out of memory?)"
    assert len(outcomes[0].rounds) == 1
    assert outcomes[1].measured
    assert len(outcomes[1].rounds) == 3


@pytest.mark.slow
def test_what_a_worker_raises_is_its_reason() -> None:
    broken = worker(Row(OURS, "hardnet39ds", "no such engine", "fp32", 1, 64, 64))
    with pytest.raises(WorkerError, match="ValueError: there is no engine 'no such engine'"):
        broken.answer(HANG)
    broken.close()
    absent = worker(Row(OURS, "hardnet39ds", "torch", "int8", 1, 64, 64))
    with pytest.raises(LeftOut, match="torch engine has no int8"):
        absent.answer(HANG)
    absent.close()


def test_a_precision_that_an_engine_has_not_is_told_apart_from_a_failure() -> None:
    with pytest.raises(NotImplementedError, match="torch engine has no int8"):
        build(Row(OURS, "hardnet39ds", "torch", "int8", 1, 64, 64), threads=1, device="cpu", photographs=None)


def test_a_failed_row_makes_the_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Row] = []

    def fails(planned: list[Row], protocol: Protocol, say: Callable[[str], None]) -> Any:
        rows.extend(planned)
        return measure(planned, protocol, say, dying_start([], planned[-1], -1))

    monkeypatch.setattr(benchmark_cli, "measure", fails)
    monkeypatch.setattr("made_results.SECONDS", dict.fromkeys([FLOOR_ROW, *tiny_plan()], 0.1))
    command = "benchmark hardnet39ds --engines eager --sizes 224 --no-peers --rounds 2"
    assert main(command.split()) == 1
    assert f"failed: {rows[-1]}: killed by SIGSEGV" in capsys.readouterr().out


def tiny_plan() -> list[Row]:
    return [Row(OURS, "hardnet39ds", "eager", "fp32", 1, 224, 224)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("hardnet99", "no model 'hardnet99'"),
        ("--engines fast", "no engine 'fast'"),
        ("--precisions fp8", "no precision 'fp8'"),
        ("--sizes 16", "at least 32"),
        ("--batch-sizes 0", "batch-sizes"),
        ("--rounds 0", "rounds"),
        ("--threads 0", "threads"),
        ("--device cuda:99", "device"),
        ("--end-to-end --images 0", "images"),
        ("--end-to-end --photographs no/such/folder", "no/such/folder"),
    ],
)
def test_wrong_arguments_are_refused_in_words(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *arguments.split()]) == 2
    assert said in capsys.readouterr().err


def test_counts_agree_with_each_other_and_with_the_literature() -> None:
    """Two counters, one of them torch's own; and ResNet-50's well-known 4.09 G, MobileNetV2's 0.30 G."""
    row = Row(OURS, "hardnet39ds", "eager", "fp32", 1, 224, 224)
    assert macs(row) == count_macs(partial(network, row), 224, 224)
    known = {"resnet50": 4.09, "mobilenet_v2": 0.30}
    for source, name in PEERS[:2]:
        assert macs(Row(source, name, "eager", "fp32", 1, 224, 224)) / 1e9 == pytest.approx(known[name], abs=0.006)


def test_reported_errors_come_from_the_catalogues() -> None:
    def error(source: str, name: str, precision: str = "fp32") -> float | None:
        return reported_top1_error(Row(source, name, "eager", precision, 1, 224, 224))

    assert error(OURS, "hardnet85") == error("pytorchcv", "hardnet85") == 21.96
    assert error("torchvision", "resnet50") == 23.87
    assert error(OURS, "hardnet85", "int8") is None
    assert error("timm", "ese_vovnet39b") is None


def test_settled_networks_keep_their_values_in_range() -> None:
    model = network(TINY)
    settle(model, 64, 64)
    seen: list[float] = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == 0.1
            module.register_forward_hook(lambda module, inputs, output: seen.append(output.std().item()))
    with torch.inference_mode():
        model.eval()(torch.randn(4, 3, 64, 64))
    assert len(seen) > 30
    assert all(0.2 < deviation < 5 for deviation in seen)


def test_pytorchcv_takes_other_sizes() -> None:
    row = Row("pytorchcv", "hardnet39ds", "eager", "fp32", 2, 96, 64)
    output = build(row, threads=1, device="cpu", photographs=None)()
    assert isinstance(output, torch.Tensor)
    assert output.shape == (2, 1000)
    assert output.isfinite().all()


def test_the_matrix_product_is_one() -> None:
    product, rates = fastest_product("cpu", (64, 96))
    assert set(rates) == {"mm", "convolution"}
    assert product.operations == 2 * product.side**3
    assert product.operations / product.seconds / 1e9 == pytest.approx(max(rates.values()), rel=0.02, abs=0.06)


def test_the_peak_of_memory_is_that_since_the_reset() -> None:
    if not reset_peak():
        assert peak_resident() > 50  # such a system tells the peak of the whole life
        return
    before = peak_resident()
    block = torch.ones(60_000_000 // 4)
    assert peak_resident() > before + 50
    del block
    assert reset_peak()
    assert peak_resident() < before + 30


def test_photographs_are_cut_reproducibly(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (write_jpegs(tmp_path / name, 6, find_photographs(None)) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    sizes = [Image.open(path).size for path in first]
    assert len(set(sizes)) == 6
    assert [height > width for width, height in sizes] == [True, False, False] * 2
    assert all(370 < max(size) < 640 and 280 < min(size) < 480 for size in sizes)


def test_calibration_images_are_prepared_photographs() -> None:
    batches = calibration_images(None, 128, 96, 3)
    images = torch.cat(batches)
    assert [len(batch) for batch in batches[:-1]] == [3] * (len(batches) - 1)
    assert images.shape[1:] == (3, 128, 96)
    assert len(images) > 64
    assert -2.2 < images.min() < -1
    assert 1 < images.max() < 2.7
    assert not torch.equal(images[0], images[5])  # another part of the same photograph


def test_end_to_end_figures_fit_together(tmp_path: Path) -> None:
    paths = write_jpegs(tmp_path, 10, find_photographs(None))
    row = Row(OURS, "hardnet39ds", "torch", "fp32", 4, 224, 224)
    figures = measure_folder(row, paths, threads=1, device="cpu", photographs=None)
    assert figures["images"] == 10
    assert figures["images_per_second"] == pytest.approx(1000 / figures["whole"]["wall_ms"], rel=0.01)
    for part in ("decode", "preprocess", "model_alone"):  # none is left out, none is more than the whole
        assert 0.1 < figures[part]["processor_ms"] < figures["whole"]["processor_ms"]
    assert 0 < figures["model_runs"] < 1


def test_an_unusable_file_stops_the_end_to_end_run(tmp_path: Path) -> None:
    paths = write_jpegs(tmp_path, 2, find_photographs(None))
    paths[1].write_bytes(b"not a picture")
    row = Row(OURS, "hardnet39ds", "eager", "fp32", 2, 224, 224)
    with pytest.raises(ImageError, match=r"00001\.jpg"):
        measure_folder(row, paths, threads=1, device="cpu", photographs=None)


def test_end_to_end_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "benchmark hardnet39ds --end-to-end --images 4 --batch-sizes 2 --engines eager --json"
    assert main([*command.split(), str(tmp_path / "end.json")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[:4] == ["hardnet39ds", "eager", "fp32", "2"]
    results = json.loads((tmp_path / "end.json").read_text())
    assert (results["kind"], results["protocol"]["images"], len(results["rows"])) == ("end to end", 4, 1)
