"""Output files of `predict` and `extract`: one row per image in every format, resuming, the ranks of torchrun."""

from __future__ import annotations

import csv
import errno
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hardnet
from hardnet.cli import main
from hardnet.inference.jobs import Columns, RowFile
from hardnet.inference.results import Embedding
from hardnet.utils.text import printable

FORMATS = [(verb, suffix) for verb in ("predict", "extract") for suffix in (".jsonl", ".csv", ".parquet")]
FORMATS.append(("extract", ".npz"))


CLASSIFIER, EXTRACTOR = functools.cache(hardnet.Classifier), functools.cache(hardnet.Extractor)


@pytest.fixture(autouse=True)
def _models_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardnet.inference.classifier.Classifier", CLASSIFIER)
    monkeypatch.setattr("hardnet.inference.classifier.Extractor", EXTRACTOR)


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Pictures in a folder, whose names are those that a CSV file has to quote; one is broken."""
    (tmp_path / "in").mkdir()
    names = [
        "1.png",
        "2 two\nlines, and a comma.png",
        "3 re\rturn.png",
        '4 quo"ted.png',
        "5 \udcff.png",
        "10 \u65e5.png",
    ]
    for name in names:
        Image.new("RGB", (40, 36), (10 * int(name[0]), 200, 30)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "0.png").write_bytes(b"no picture")
    return [str(tmp_path / "in" / name) for name in names]


def run(verb: str, source: object, output: Path, *options: object) -> int:
    weights = ["--model", "hardnet39ds", "--weights", "FASHION_MNIST", "--device", "cpu"]
    return main([verb, str(source), "--output", str(output), *weights, *map(str, options)])


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file in any of the formats: source, error, and the top label or the vector."""
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    elif path.suffix == ".parquet":
        rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    elif path.suffix == ".npz":
        with np.load(path) as file:  # allow_pickle is off
            assert file["embeddings"].dtype == np.float32
            columns = zip(file["sources"].tolist(), file["embeddings"], file["errors"].tolist(), strict=True)
            rows = [{"source": source, "embedding": vector, "error": error} for source, vector, error in columns]
    else:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as text:
            rows = list(csv.DictReader(text))
    return [
        {"source": row["source"], "error": row.get("error") or None, "value": None if row.get("error") else value(row)}
        for row in rows
    ]


def value(row: dict[str, Any]) -> Any:
    if "label" in row:
        return row["label"]
    if "predictions" in row:
        return row["predictions"][0]["label"]
    vector = row["embedding"] if "embedding" in row else [row[key] for key in row if key.isdecimal()]
    return np.array(vector).astype(np.float32).tobytes()


@pytest.mark.parametrize(("verb", "suffix"), FORMATS)
def test_every_image_has_one_row_and_a_killed_run_is_resumed(
    verb: str, suffix: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = tmp_path / "in", tmp_path / f"x{suffix}"
    assert run(verb, folder, path) == 1
    rows = read(path)
    expected = [str(folder / "0.png"), *names]
    assert [row["source"] for row in rows] == [printable(name) if suffix == ".parquet" else name for name in expected]
    assert [row["error"] is None for row in rows] == [False] + [True] * 6
    assert "0.png: is not an image" in rows[0]["error"]
    if verb == "extract":
        vectors = [one.vector for one in EXTRACTOR("hardnet39ds", weights="FASHION_MNIST").stream(names)]
        assert [row["value"] for row in rows[1:]] == [vector.numpy().tobytes() for vector in vectors]
    else:
        results = CLASSIFIER("hardnet39ds", weights="FASHION_MNIST").predict(names)
        assert [row["value"] for row in rows[1:]] == [result.top.label for result in results]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in", path.name]

    if suffix in (".parquet", ".npz"):
        assert run(verb, folder, path, "--resume") == 2  # it is complete
    elif suffix == ".csv":
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert run(verb, folder, path, "--resume") == 0
        assert read(path) == rows


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".npz"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_rows_are_completed_wherever_the_writer_was_killed(
    suffix: str, shuffled: bool, names: list[str], tmp_path: Path
) -> None:
    columns = Columns("embedding", (0, 1), lambda one: one.vector.tolist(), 2)

    def write(paths: list[str], *, resume: bool) -> None:
        file = RowFile(str(path), columns)
        file.open(resume=resume)
        items = list(file.missing(paths))
        failed = [Embedding(item.source, None, "a\nb") for item in items if "re\r" in item.source]
        fine = [Embedding(item.source, torch.ones(2)) for item in items if "re\r" not in item.source]
        file.add(map(file.line, failed + fine))
        file.finish()

    path = tmp_path / f"x{suffix}"
    twice = [*names, names[2]]
    write(twice, resume=False)
    file = RowFile(str(path), columns)
    file.open(resume=False)
    file.add(file.line(Embedding(name, torch.ones(2))) for name in twice)
    growing = path if suffix in (".jsonl", ".csv") else tmp_path / f"x{suffix}.part"
    whole = growing.read_bytes()
    for length in range(0, len(whole) + 1, 1 if growing == path else 150):
        growing.write_bytes(whole[:length])  # as SIGKILL leaves it
        write(twice[::-1] if shuffled else twice, resume=True)
        found = sorted(row["source"] for row in read(path))
        assert found == sorted(map(printable, twice) if suffix == ".parquet" else twice), length


def test_files_that_cannot_be_resumed_or_written(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    for name, content in (("x.jsonl", "[1]\n"), ("x.jsonl", '{"source": "a", "embedding": []}\n'), ("x.csv", "a,b\n")):
        (tmp_path / name).write_text(content)
        assert run("predict", folder, tmp_path / name, "--resume") == 2
        assert "cannot be resumed" in capsys.readouterr().err
    assert run("predict", folder, tmp_path / "x.npz") == run("extract", folder, tmp_path / "x.txt") == 2
    assert run("predict", folder, tmp_path / "no" / "x.csv") == run("extract", folder, tmp_path / "no" / "x.npz") == 4
    assert main(["predict", str(folder), "--resume"]) == 2
    target = tmp_path / "x.npz"
    target.write_text("from before")
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    assert main(["extract", names[0], "--output", str(target)]) == 3

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    capsys.readouterr()
    assert run("extract", names[0], target) == 4
    assert capsys.readouterr().err == f"hardnet: {target}: cannot be written: No space left on device\n"
    assert target.read_text() == "from before"


def test_lists_and_patterns(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text(f"{names[0]}\n{names[3]}\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{names[5]}\n"))
    pattern = str(tmp_path / "in" / "[1-4]*.png")
    assert main(["predict", "-", pattern, "--from-file", str(tmp_path / "list.txt"), "--format", "jsonl"]) == 0
    found = [json.loads(line)["source"] for line in capsys.readouterr().out.splitlines()]
    assert found == [names[5], *names[:4], names[5], names[0], names[3]]  # of a pattern in natural order
    assert main(["predict"]) == 2
    assert main(["predict", "--from-file", str(tmp_path / "gone.txt")]) == 2


def pictures(folder: Path, count: int) -> Path:
    """A folder of links to one picture, and to a file that is none."""
    folder.mkdir()
    Image.new("RGB", (80, 60), "green").save(folder.parent / "picture.png")
    (folder.parent / "nothing.png").write_bytes(b"no picture")
    for number in range(count):
        (folder / f"{number}.png").symlink_to(folder.parent / ("nothing.png" if number == 7 else "picture.png"))
    return folder


def command(verb: str, folder: Path, output: Path, *, ranks: int = 0) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    options = ["--weights", "FASHION_MNIST", "--batch-size", "4", "--device", "cpu", "--resume"]
    return [sys.executable, *torchrun, "-m", "hardnet", verb, str(folder), "--output", str(output), *options]


def wait_for_bytes(path: Path, size: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not (path.exists() and path.stat().st_size >= size):
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "name"), [("predict", "x.csv"), ("extract", "x.npz")])
def test_sigkill_loses_and_repeats_no_image(verb: str, name: str, tmp_path: Path) -> None:
    kills = int(os.environ.get("HARDNET_TEST_KILLS", "3"))
    folder, path = pictures(tmp_path / "in", 600), tmp_path / name
    growing, random = path if verb == "predict" else tmp_path / "x.npz.part", Random(0)  # noqa: S311
    row = 400 if verb == "predict" else 5500
    for number in range(kills):
        process = subprocess.Popen(command(verb, folder, path), stderr=subprocess.DEVNULL)
        wait_for_bytes(growing, int(row * 550 * (number + random.random()) / kills), process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert subprocess.run(command(verb, folder, path), stderr=subprocess.DEVNULL, check=False).returncode in (0, 1)
    assert [Path(row["source"]).stem for row in read(path)] == [str(number) for number in range(600)]


@pytest.mark.slow
def test_the_ranks_of_torchrun_write_what_one_process_writes(tmp_path: Path) -> None:
    folder, path, whole = pictures(tmp_path / "in", 301), tmp_path / "x.csv", tmp_path / "whole.csv"
    assert subprocess.run(command("predict", folder, whole), check=False).returncode == 1
    process = subprocess.Popen(command("predict", folder, path, ranks=2))
    wait_for_bytes(path, whole.stat().st_size // 3, process)
    children = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    ranks = [child for child in children if b"predict" in Path(f"/proc/{child}/cmdline").read_bytes()]
    os.kill(ranks[-1], signal.SIGKILL)
    assert process.wait() == 1
    assert 1 < len(read(path)) < 301
    assert subprocess.run(command("predict", folder, path, ranks=2), check=False).returncode == 0
    assert [(row["source"], row["value"]) for row in read(path)] == [
        (row["source"], row["value"]) for row in read(whole)
    ]
