"""Embeddings: what is extracted, in what form it is written, and what becomes of a run that fails."""

from __future__ import annotations

import argparse
import csv
import errno
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import golden_state
from pictures import fill_folder, one_torch_thread, plain, small_transform
from torch import Tensor, nn

from hardnet import HarDNet, ImageError, WeightsError, create_model
from hardnet.cli import main
from hardnet.cli.embedding_file import EmbeddingFile
from hardnet.cli.extract import add_verb as add_extract
from hardnet.inference import Extractor
from hardnet.models.config import CONFIGS

WIDTH = 1024


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture
def model(golden_fill: Callable[[nn.Module], nn.Module]) -> HarDNet:
    filled = golden_fill(HarDNet(CONFIGS["hardnet39ds"], num_classes=3))
    assert isinstance(filled, HarDNet)
    return filled


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures; number 4 is broken."""
    path = tmp_path / "pictures"
    path.mkdir()
    for number, colour in enumerate(("red", "green", "blue") * 2):
        plain(colour, (40 + number, 36)).save(path / f"{number}.png")
    whole = (path / "4.png").read_bytes()
    (path / "4.png").write_bytes(whole[: len(whole) // 2])
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "golden.pth"
    torch.save(golden_state("hardnet39ds"), path)
    return str(path)


def extract(*arguments: object) -> int:
    """As the command line has it; where it exits with an error, the error."""
    parser = argparse.ArgumentParser()
    add_extract(parser.add_subparsers())
    parsed = parser.parse_args(["extract", "--device", "cpu", *map(str, arguments)])
    status: int = parsed.run(parsed)
    return status


def vectors(results: object) -> list[Tensor | None]:
    return [result.vector for result in results]


def test_embeddings_are_the_pooled_features(model: HarDNet, device: str) -> None:
    extractor = Extractor(model, device=device, transform=small_transform)
    assert extractor.num_features == WIDTH
    assert not model.training
    images = [plain("red"), plain("green"), plain("blue")]
    batch = torch.stack([small_transform(image) for image in images]).to(device)
    with torch.inference_mode():
        wanted = model.forward_features(batch).mean((2, 3)).cpu()
    for batch_size in (1, 2, 3):
        found = list(extractor.stream(images, batch_size))
        assert [one.source for one in found] == ["<image 0>", "<image 1>", "<image 2>"]
        torch.testing.assert_close(torch.stack(vectors(found)), wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(wanted[0], wanted[1], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_precision(model: HarDNet, dtype: torch.dtype) -> None:
    [one] = Extractor(model.to(dtype), device="cpu", transform=small_transform).stream(plain())
    assert one.vector.dtype == torch.float32
    assert one.vector.shape == (WIDTH,)


def test_a_broken_picture_is_named_and_left_out(model: HarDNet, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = list(Extractor(model, device="cpu", transform=small_transform).stream(folder))
    assert [Path(one.source).name for one in found] == [f"{n}.png" for n in range(6)]
    assert [one.vector is None for one in found] == [n == 4 for n in range(6)]
    assert "4.png" in found[4].error
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [found[4].error]
    with pytest.raises(ImageError, match=r"4\.png"):
        list(Extractor(model, device="cpu").stream(folder / "4.png"))


def test_a_name_needs_no_head(weights: str) -> None:
    extractor = Extractor("hardnet39ds", weights=weights, device="cpu", transform=small_transform)
    assert extractor.model.num_classes == 0
    assert extractor.transform is small_transform
    whole = create_model("hardnet39ds", weights=weights).eval()
    [one] = extractor.stream(plain())
    with torch.inference_mode():
        logits = whole.get_classifier()(one.vector)
        torch.testing.assert_close(logits, whole(small_transform(plain())[None])[0], rtol=1e-4, atol=1e-4)


def test_wrong_use(model: HarDNet) -> None:
    with pytest.raises(ValueError, match="weights= goes with the name"):
        Extractor(model, weights="IMAGENET1K_V1")
    with pytest.raises(TypeError, match="name of a model or a HarDNet, got Linear"):
        Extractor(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="no model 'hardnet40'"):
        Extractor("hardnet40", device="cpu")
    with pytest.raises(ValueError, match="'gpu' cannot be used"):
        Extractor(model, device="gpu")
    with pytest.raises(ValueError, match="batch_size must be a whole number from 1 up, got 0"):
        Extractor(model, device="cpu").stream(plain(), 0)
    model.to("cpu").base[0].conv.weight.data.fill_(float("nan"))
    [one, two] = Extractor(model, device="cpu", transform=small_transform).stream([plain(), plain()])
    assert one.vector is two.vector is None
    assert "infinite or not a number" in one.error


def test_both_formats_hold_the_same(
    weights: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract(folder, "--weights", weights, "--output", tmp_path / "x.npz", "--batch-size", 2) == 1
    assert "hardnet: 1 of 6 images could not be used" in capsys.readouterr().err
    assert extract(folder, "--weights", weights, "--output", tmp_path / "x.CSV", "--batch-size", 2) == 1
    with np.load(tmp_path / "x.npz") as file:  # allow_pickle is off
        embeddings, sources = file["embeddings"], file["sources"]
    assert (embeddings.shape, embeddings.dtype) == ((5, WIDTH), np.float32)
    assert sources.tolist() == [str(folder / f"{n}.png") for n in (0, 1, 2, 3, 5)]
    with (tmp_path / "x.CSV").open(newline="", encoding="utf-8") as text:
        header, *rows = csv.reader(text)
    assert header == ["source", *map(str, range(WIDTH))]
    assert [row[0] for row in rows] == sources.tolist()
    assert np.array_equal(np.array([row[1:] for row in rows]).astype(np.float32), embeddings)
    [first, *_] = Extractor("hardnet39ds", weights=weights, device="cpu").stream(folder, 2)
    assert np.array_equal(embeddings[0], first.vector.numpy())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "x.CSV", "x.npz"]


def test_a_whole_folder_exits_with_0(weights: str, folder: Path, tmp_path: Path) -> None:
    (folder / "4.png").unlink()
    assert extract(folder, "--weights", weights, "--output", tmp_path / "x.csv") == 0


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_rows_of_many_names(suffix: str, tmp_path: Path) -> None:
    names = ["plain.jpg", "two\nlines, and a comma.jpg", "re\rturn.jpg", 'quo"ted.jpg', "\udcff.jpg", "日本.jpg"]
    rows = torch.randn(len(names), 4)
    with EmbeddingFile(tmp_path / f"x{suffix}", 4) as file:
        for name, row in zip(names, rows, strict=True):
            file.add(name, row)
        assert file.rows == len(names)
        assert not (tmp_path / f"x{suffix}").exists()
    if suffix == ".npz":
        with np.load(tmp_path / "x.npz") as content:
            assert content["sources"].tolist() == names
            assert np.array_equal(content["embeddings"], rows.numpy())
    else:
        with (tmp_path / "x.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as text:
            assert [row[0] for row in csv.reader(text)][1:] == names
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / f"x{suffix}").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_a_run_that_fails_leaves_what_was_there(suffix: str, tmp_path: Path) -> None:
    target = tmp_path / f"x{suffix}"
    target.write_text("from before")

    def interrupted() -> None:
        with EmbeddingFile(target, 4) as file:
            file.add("a", torch.zeros(4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "from before"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_a_full_disk(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with EmbeddingFile(tmp_path / f"x{suffix}", 4) as file:
            file.add("a", torch.zeros(4))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ValueError, match=rf"x\{suffix}: cannot be written: No space left"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for output, said in (
        ("x.txt", r"x\.txt: embeddings are written as \.npz or \.csv"),
        ("no/where.csv", r"where\.csv: cannot be written: No such file"),
        ("folder.npz", "is a folder"),
    ):
        (tmp_path / "folder.npz").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=said):  # before any weights are looked for
            extract(folder, "--output", tmp_path / output)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ImportError, match=r'pip install "hardnet\[numpy\]"; \.csv takes nothing'):
        EmbeddingFile(tmp_path / "x.npz", 4)
    EmbeddingFile(tmp_path / "x.csv", 4).__exit__(None, None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.npz", "pictures", "x.csv"]


def test_nothing_to_work_on(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    output = ("--output", tmp_path / "x.csv")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="none of the images could be used, nothing was written"):
        extract(tmp_path / "broken.png", tmp_path / "empty", "--weights", weights, *output)
    assert "broken.png: is not an image" in caplog.text
    assert "empty: no images in this folder" in caplog.text
    with pytest.raises(ValueError, match="--batch-size must be a whole number from 1 up, got 0"):
        extract(tmp_path, "--weights", weights, "--batch-size", 0, *output)
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    with pytest.raises(WeightsError):
        extract(tmp_path, *output)
    assert not (tmp_path / "x.csv").exists()


def test_the_folder_is_streamed(model: HarDNet, tmp_path: Path) -> None:
    stream = Extractor(model, device="cpu", transform=small_transform).stream(fill_folder(tmp_path), 4)
    assert next(stream).vector is not None
    stream.close()


def test_the_command_line_says_it_in_one_line(
    weights: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    output = ["--output", str(tmp_path / "x.csv")]
    for arguments, status in (
        ([str(folder), "--weights", weights, *output], 1),
        ([str(folder / "0.png"), "--weights", weights, *output], 0),
        ([str(tmp_path / "empty"), "--weights", weights, *output], 2),
        ([str(folder), "--weights", weights, "--output", "x.txt"], 2),
        ([str(folder), "--weights", weights, "--batch-size", "0", *output], 2),
        ([str(folder), *output], 3),
    ):
        assert main(["extract", *arguments]) == status
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        assert all(line.startswith("hardnet: ") for line in err.splitlines()[:1])
        assert (err == "") == (status == 0)
