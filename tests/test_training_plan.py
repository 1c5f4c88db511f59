"""Options that follow from the data and the weights, the verb ``finetune``, recipes of stages, odd folders."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from training_data import assert_same, make_folder, picture

from hardnet import create_model, from_pretrained
from hardnet.cli import main
from hardnet.training import train
from hardnet.training.checkpoint import BEST, FINAL, OPTIONS, VALIDATION
from hardnet.training.data import open_data
from hardnet.training.derived_options import derive_from_count, derive_from_data
from hardnet.training.metrics import METRICS, read_metrics
from hardnet.training.options import TrainOptions, read_recipe
from hardnet.training.summary import MISTAKES, MISTAKES_PICTURE
from hardnet.utils.errors import DataError

QUICK = ("--size", "32", "--workers", "0", "--device", "cpu", "--threads", "1")


def hardnet(verb: str, *arguments: object) -> int:
    return main([verb, *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path, images=10, split="plain")


def stored(run: Path) -> dict[str, Any]:
    """The options of a run, which its folder and its checkpoint hold alike."""
    options: dict[str, Any] = json.loads((run / OPTIONS).read_text())
    assert torch.load(run / FINAL, weights_only=True)["options"] == options
    return options


def test_options_depend_on_the_number_of_images_and_the_weights() -> None:
    assert derive_from_count(50_000, 1, pretrained=True) == {}  # the defaults, which are ImageNet's
    sizes = (5, 60, 5_000, 49_999)
    assert [derive_from_count(images, 1, pretrained=True)["batch_size"] for images in sizes] == [5, 16, 64, 128]
    assert derive_from_count(5_000, 4, pretrained=True)["batch_size"] == 16
    for images in sizes:
        fresh, tuned = (derive_from_count(images, 1, pretrained=weights) for weights in (False, True))
        assert fresh["epochs"] > tuned["epochs"]
        TrainOptions("d", "o", **fresh)


def test_large_images_of_a_small_data_set_are_kept_shrunk(tmp_path: Path) -> None:
    root = make_folder(tmp_path, images=2, split="plain", size=300)
    data = open_data(TrainOptions(root, tmp_path / "run"))
    assert derive_from_data(data, 64, 1, pretrained=True)["cache_size"] == 147
    assert "cache_size" not in derive_from_data(data, 128, 1, pretrained=True)


def test_a_small_folder_is_trained_with_derived_options(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--weights", "FASHION_MNIST", "--epochs", 1, *QUICK)
    assert hardnet("train", folder, "--output", tmp_path / "run", *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 classes, 24 images for training, 6 for validation"
    assert lines[1] == "images of a class: class_0 8 + 2, class_1 8 + 2, class_2 8 + 2"
    assert lines[3] == "hardnet39ds from the weights FASHION_MNIST on cpu, 1 thread, 0 data workers"
    assert lines[2].startswith("options for these data and weights: ")
    values = dict(part.split(" ", 1) for part in lines[2].split(": ", 1)[1][2:].split(" --"))
    assert {"batch-size", "lr", "min-scale", "mean"} <= values.keys()
    options = stored(tmp_path / "run")
    for flag, text in values.items():
        value = options[flag.replace("-", "_")]
        assert text == " ".join(map(str, value if isinstance(value, list) else [value]))
    assert options["mean"] == [0.286] * 3  # of the weights
    assert (options["epochs"], options["size"]) == (1, 32)  # as asked for
    assert read_recipe(str(tmp_path / "run" / OPTIONS)) == [options]
    assert lines[5].startswith("epoch 1 of 1, size 32, loss ")
    assert "validation top-1 error " in lines[5]
    assert lines[-1] == f"next: hardnet predict PICTURE --weights {tmp_path / 'run'}"
    assert hardnet("train", folder, "--output", tmp_path / "run", *arguments) == 2
    assert "holds a run already: go on with --resume auto" in capsys.readouterr().err


def test_finetuning_trains_the_head_then_all_and_its_folder_predicts(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = ("--output", run, "--weights", "FASHION_MNIST", "--epochs", 2, *QUICK)
    assert hardnet("finetune", folder, *arguments) == 0
    head, everything = stored(run / "stage-1"), stored(run)
    assert (head["freeze"], head["epochs"], everything["freeze"], everything["epochs"]) == (True, 1, False, 2)
    assert everything["layer_decay"] == 0.75
    assert everything["weights"] == str(run / "stage-1" / FINAL)
    start = create_model("hardnet39ds", weights="FASHION_MNIST").state_dict()
    first, last = (torch.load(path / FINAL, weights_only=True)["model"] for path in (run / "stage-1", run))
    body = [key for key in start if not key.startswith("base.14.")]
    assert all(torch.equal(start[key], first[key]) for key in body)
    assert not any(torch.equal(first[key], last[key]) for key in body if key.endswith("conv.weight"))
    check_summary(run, capsys.readouterr().out.splitlines())
    picture(1, 77).save(tmp_path / "one.png")
    assert hardnet("predict", tmp_path / "one.png", "--weights", run, "--format", "json") == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert {prediction["label"] for prediction in result["predictions"]} == {"class_0", "class_1", "class_2"}
    assert hardnet("evaluate", folder, "--weights", run / "pretrained", "--device", "cpu", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)[0]["images"] == 30
    assert hardnet("finetune", folder, *arguments, "--resume", "auto") == 0  # nothing is left to do


def check_summary(run: Path, lines: list[str]) -> None:
    """What is printed at the end fits the files of the run."""
    metrics = read_metrics(run / METRICS)
    best = min(metrics, key=lambda numbers: (numbers["val_top1_error"], -numbers["epoch"]))
    wrong = round(6 * best["val_top1_error"] / 100)
    start = f"best epoch, {best['epoch']} of 2: {wrong} of 6 validation images wrong"
    position = next(number for number, line in enumerate(lines) if line.startswith(start))
    assert f"last epoch: {metrics[-1]['val_top1_error']:.2f} % wrong" in lines[position]
    with (run / MISTAKES).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == wrong > 0
    held_out = (run / VALIDATION).read_text().splitlines()
    for row, line in zip(rows, lines[position + 2 :], strict=False):
        assert row["image"] in held_out
        assert row["image"].startswith(row["class"])
        assert line.startswith(f"  {row['image']}: taken for {row['prediction']} (")
    with Image.open(run / MISTAKES_PICTURE) as sheet:
        assert sheet.width > 100 * wrong
    content = torch.load(run / BEST, weights_only=True)
    assert content["metrics"] == best
    assert_same(hardnet_model(run / "pretrained"), content["model"])
    assert_same(hardnet_model(run), content["model"])
    assert lines[-1] == f"next: hardnet predict PICTURE --weights {run}"


def hardnet_model(source: Path) -> dict[str, torch.Tensor]:
    return dict(from_pretrained(source).state_dict())


def test_finetuning_starts_from_the_packaged_weights_unless_a_model_is_named(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    assert hardnet("finetune", folder, "--output", tmp_path / "run", "--model", "hardnet68", *QUICK) == 3
    assert "hardnet68 IMAGENET1K_V1" in capsys.readouterr().err
    assert hardnet("finetune", folder, "--output", tmp_path / "run", "--epochs", 1, *QUICK) == 0


def test_the_stages_of_a_recipe_follow_each_other(tmp_path: Path, folder: Path) -> None:
    recipe = tmp_path / "own.json"
    recipe.write_text('[{"epochs": 7, "batch_size": 8, "lr": 0.1}, {"lr": 0.2}]')
    run = tmp_path / "run"
    assert hardnet("train", folder, "--output", run, "--recipe", recipe, "--epochs", 1, *QUICK) == 0
    options = [stored(path) for path in (run / "stage-1", run)]
    assert [(one["epochs"], one["lr"], one["batch_size"]) for one in options] == [(1, 0.1, 8), (1, 0.2, 8)]
    assert [one["weights"] for one in options] == [None, str(run / "stage-1" / FINAL)]


@pytest.mark.parametrize(
    ("removed", "status", "complaint"),
    [
        ("class_[12]/*", 2, "no images in the folders class_1, class_2: remove them, or add images"),
        ("class_1/[1-9].png", 0, "the class class_1 has one image: it is trained on, not validated"),
    ],
)
def test_odd_folders_get_one_clear_line(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], removed: str, status: int, complaint: str
) -> None:
    for path in folder.glob(removed):
        path.unlink()
    assert hardnet("train", folder, "--output", tmp_path / "run", "--epochs", 1, *QUICK) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


def test_two_classes_are_required_and_their_names_differ_in_more_than_case(tmp_path: Path) -> None:
    root = make_folder(tmp_path, classes=1)
    with pytest.raises(DataError, match="has one class, class_0: two or more are required"):
        train(TrainOptions(root, tmp_path / "run", batch_size=2))
    shutil.copytree(root / "class_0", root / "Class_0")
    with pytest.raises(DataError, match="the classes Class_0, class_0 differ in case only: rename or merge them"):
        train(TrainOptions(root, tmp_path / "run"))
