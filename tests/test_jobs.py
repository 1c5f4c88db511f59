"""Output files of `predict` and `extract`: one row per image in every format, resuming, the ranks of torchrun."""

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
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hardnet
from hardnet.cli import main
from hardnet.images.batches import expand
from hardnet.inference.jobs import RowFile
from hardnet.inference.results import Embedding
from hardnet.utils.errors import OutputError

FORMATS = [(verb, suffix) for verb in ("predict", "extract") for suffix in (".jsonl", ".csv", ".parquet")]
FORMATS.append(("extract", ".npz"))


CLASSIFIER, EXTRACTOR = functools.cache(hardnet.Classifier), functools.cache(hardnet.Extractor)


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
    for row in rows:
        row["source"] = os.fsdecode(row.get("source_bytes") or row["source"])
        row["error"] = row.get("error") or None
        row["value"] = None if row["error"] else value(row)
    return rows


def value(row: dict[str, Any]) -> Any:
    if row.get("predictions"):
        return row["label"] if "label" in row else row["predictions"][0]["label"]
    vector = row["embedding"] if "embedding" in row else [row[key] for key in row if key.isdecimal()]
    return np.array(vector).astype(np.float32).tobytes()


@pytest.mark.parametrize(("verb", "suffix"), FORMATS)
def test_every_image_has_one_row_in_order(
    verb: str, suffix: str, names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = tmp_path / "in", tmp_path / f"x{suffix}"
    assert run(verb, folder, path) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"hardnet: {path}: rows: 7, errors: 1, engine: eager fp32"
    rows = read(path)
    assert [row["source"] for row in rows] == [str(folder / "0.png"), *names]
    assert [row["error"] is None for row in rows] == [False] + [True] * 6
    assert "0.png: is not an image" in rows[0]["error"]
    if verb == "extract":
        vectors = [result.vector for result in EXTRACTOR("hardnet39ds", weights="FASHION_MNIST").stream(names)]
        assert [row["value"] for row in rows[1:]] == [vector.numpy().tobytes() for vector in vectors]
    else:
        results = CLASSIFIER("hardnet39ds", weights="FASHION_MNIST").predict(names)
        assert [row["value"] for row in rows[1:]] == [result.top.label for result in results]
    grows = suffix in (".csv", ".jsonl")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in", path.name, *[f"{path.name}.run.json"] * grows]
    whole = path.read_bytes()
    assert run(verb, folder, path) == 2  # it exists
    assert path.read_bytes() == whole
    assert run(verb, folder, path, "--resume") == (1 if grows else 2)  # another file is complete
    assert path.read_bytes() == whole
    assert run(verb, names[0], path, "--overwrite") == 0
    assert [row["source"] for row in read(path)] == names[:1]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".npz"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_rows_are_completed_wherever_the_writer_was_killed(
    suffix: str, shuffled: bool, names: list[str], tmp_path: Path
) -> None:
    path, run = tmp_path / f"x{suffix}", {"engine": "eager"}
    growing = path if suffix in (".jsonl", ".csv") else tmp_path / f"x{suffix}.part"
    record = tmp_path / f"{growing.name}.run.json"

    def write(paths: list[str], *, finish: bool) -> None:
        file = RowFile(path, 2, resume=finish)
        with file.held():
            items = file.missing(list(expand(paths)), 3)
            file.start(run)
            fine, bad = Embedding("", torch.ones(2)), Embedding("", None, "a\nb")
            results = [replace(bad if "re\r" in item.source else fine, source=item.source) for item in items]
            file.add([(file.line(result), result.error is not None) for result in results])
            if finish:
                file.finish(run)

    twice = [*names, names[2]]
    write(twice, finish=False)
    whole, recorded = growing.read_bytes(), record.read_bytes()
    for length in range(0, len(whole) + 1, 1 if growing == path else 150):
        path.unlink(missing_ok=True)
        (tmp_path / f".{path.name}.{'0a' * 16}.part").touch()
        growing.write_bytes(whole[:length])  # as SIGKILL leaves it
        record.write_bytes(recorded)
        write(twice[::-1] if shuffled else twice, finish=True)
        assert sorted(row["source"] for row in read(path)) == sorted(twice), length
        assert shuffled or growing != path or path.read_bytes() == whole, length
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_a_file_belongs_to_its_run(names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, weights, path = tmp_path / "labels.txt", tmp_path / "other.pth", tmp_path / "x.jsonl"
    labels.write_text("\n".join("abcdefghij"))
    torch.save(hardnet.create_model("hardnet39ds", num_classes=10).state_dict(), weights)
    assert run("predict", names[0], path, "--engine", "torch") == 0
    content = path.read_bytes()
    for option, value, difference in (
        ("--labels", labels, "other labels"),
        ("--weights", weights, "weights"),
        ("--topk", 1, "topk 5, now 1"),
        ("--threshold", 0.9, "threshold 0.0, now 0.9"),
        ("--engine", "eager", "engine torch, now eager"),
    ):
        capsys.readouterr()
        assert run("predict", tmp_path / "in", path, "--resume", option, value) == 2, option
        assert f"its rows have {difference}" in capsys.readouterr().err
        assert path.read_bytes() == content
    assert run("predict", tmp_path / "in", path, "--resume") == 1
    assert "engine: torch fp32" in capsys.readouterr().err  # the engine of the first part, not "auto" for 7 images
    assert run("extract", tmp_path / "in", path, "--resume") == 2
    (tmp_path / "x.jsonl.run.json").unlink()
    assert run("predict", tmp_path / "in", path, "--resume") == 2
    assert "x.jsonl.run.json" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("damage", [('"', ""), ('"', '""'), (",", ""), ("\n", "\n\n")])
def test_a_damaged_row_is_refused_by_its_line_and_nothing_is_cut(
    suffix: str, damage: tuple[str, str], names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"x{suffix}"
    pictures = [name for name in names if "\n" not in name and "\r" not in name]
    assert main(["predict", *pictures, "--output", str(path)]) == 0
    lines = path.read_text(errors="surrogateescape").splitlines(keepends=True)
    lines[1] = lines[1].replace(*damage, 1)
    text = "".join(lines)
    path.write_text(text, errors="surrogateescape")
    assert main(["predict", pictures[0], "--output", str(path), "--resume"]) == 2
    assert "line 2 is no row" in capsys.readouterr().err or damage[0] == "\n"
    assert path.read_text(errors="surrogateescape") == text


def test_one_process_at_a_time_writes_a_file(names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with RowFile(path).held(), pytest.raises(OutputError, match="another process"):
        hardnet.predict_to_file(CLASSIFIER("hardnet39ds", weights="FASHION_MNIST"), names, path)
    assert not path.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device")
def test_devices_and_fifos_are_written_and_never_read(names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for device, status in (("/dev/null", 0), ("/dev/full", 4), ("/dev/zero", 0)):
        path.symlink_to(device)
        assert run("predict", names[0], path) == status
        assert run("predict", names[0], path, "--resume") == 2
        path.unlink()
    os.mkfifo(path)
    reader = subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE, text=True)
    assert run("predict", names[0], path) == 0
    assert reader.communicate()[0].splitlines()[1].startswith(f"{names[0]},")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in", "x.csv"]
    (tmp_path / "y.npz").symlink_to("/dev/null")
    assert run("extract", names[0], tmp_path / "y.npz") == 2


def test_files_that_cannot_be_written(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    assert run("predict", folder, tmp_path / "x.npz") == run("extract", folder, tmp_path / "x.txt") == 2
    assert run("predict", folder, tmp_path / "no" / "x.csv") == run("extract", folder, tmp_path / "no" / "x.npz") == 4
    assert main(["predict", str(folder), "--resume"]) == 2
    target = tmp_path / "x.npz"
    target.write_text("from before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    capsys.readouterr()
    assert run("extract", names[0], target, "--overwrite") == 4
    assert capsys.readouterr().err == f"hardnet: {target}: cannot be written: No space left on device\n"
    assert target.read_text() == "from before"


def test_cells_of_csv_files_are_no_formulas_and_names_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.png", "'=1.png", "'a.png", "@x.png", "plain.png"]
    for name in names:
        Image.new("RGB", (40, 36), "green").save(name)
    classifier = hardnet.Classifier(hardnet.create_model("hardnet39ds", num_classes=2), labels=["=1+1", "-x"])
    path = tmp_path / "x.csv"
    hardnet.predict_to_file(classifier, names[:3], path, topk=1)
    assert hardnet.predict_to_file(classifier, names, path, topk=1, resume=True).rows == len(names)
    cells = [cell for row in csv.reader(path.open(newline="")) for cell in row]
    assert [cell for cell in cells if cell[:1] in "=+-@" and cell] == []
    assert cells[6::6] == ["'=1+1.png", "''=1.png", "'a.png", "'@x.png", "plain.png"]


def test_lists_and_patterns(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list is split at line feeds only; its names are the bytes of the file system, without a byte order mark."""
    odd = [tmp_path / "in" / name for name in ("a\u2028b.png", "a\fb.png", "a\rb.png")]
    for path in odd:
        Image.new("RGB", (40, 36)).save(path)
    listed = [names[0], names[4], *map(str, odd)]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + os.fsencode("\r\n".join(listed)))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(f"{names[5]}\n{names[4]}\n\n"))))
    pattern = str(tmp_path / "in" / "[1-4]*.png")
    assert main(["predict", "-", pattern, "--from-file", str(tmp_path / "list.txt"), "--format", "jsonl"]) == 0
    sources = [json.loads(line)["source"] for line in capsys.readouterr().out.splitlines()]
    assert sources == [names[5], names[4], *names[:4], names[5], *listed]  # of a pattern in natural order
    assert main(["predict"]) == 2
    assert main(["predict", "--from-file", str(tmp_path / "gone.txt")]) == 4


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
    parts, complete = ([(row["source"], row["value"]) for row in read(file)] for file in (path, whole))
    assert parts == complete
