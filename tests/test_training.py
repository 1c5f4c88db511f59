"""The options of a run, what follows from them, the verb ``train``, and its records."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from timm.optim import param_groups_layer_decay
from torch import nn
from training_data import options

from hardnet import create_model
from hardnet.cli import build_parser
from hardnet.training.components import make_optimizer, make_scheduler, set_training_mode
from hardnet.training.metrics import CURVES, METRICS, draw_curves, read_metrics, write_metrics
from hardnet.training.options import FIELDS, TrainOptions, read_recipe
from hardnet.utils.errors import TrainingError


def test_metrics_of_epochs_to_be_repeated_are_taken_back(tmp_path: Path) -> None:
    for epoch in (1, 2, 3, 3):
        write_metrics(tmp_path, {"epoch": epoch, "train_loss": 1.0 / epoch, "lr": 0.1, "size": 32})
    write_metrics(tmp_path, {"epoch": 2, "train_loss": 0.3, "lr": 0.1, "size": 32})
    assert [numbers["train_loss"] for numbers in read_metrics(tmp_path / METRICS)] == [1.0, 0.3]
    for foreign in ("epoch 1: 0.5", "[1]", '{"step": 5}', "9" * 5000):
        (tmp_path / METRICS).write_text(foreign)
        with pytest.raises(TrainingError, match="is not the record of a run"):
            read_metrics(tmp_path / METRICS)


def test_the_curves_are_drawn_where_matplotlib_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for epoch in (1, 2):
        write_metrics(tmp_path, {"epoch": epoch, "train_loss": 3.0 - epoch, "lr": 0.1, "size": 32})
    draw_curves(tmp_path)
    with Image.open(tmp_path / CURVES) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    draw_curves(tmp_path)  # without an error


def test_a_wrong_option_is_answered_with_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--epochs", "x"], ["--epochs"], ["--crop", "square"], []):
        with pytest.raises(SystemExit) as caught:
            build_parser().parse_args(["finetune", "somewhere", *arguments])
        assert caught.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) < 6
        assert lines[0].startswith("hardnet finetune: ")
        assert not arguments or lines[1].startswith(f"  {arguments[0]} ")


def test_the_help_of_finetune_has_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["finetune", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--epochs N number of epochs (default: derived from the data)" in text
    flags = {f"--{name.replace('_', '-')} " for name in FIELDS.keys() - {"data", "freeze"}}
    assert all(flag in text or flag.replace(" ", ",") in text for flag in flags)
    assert "--freeze " not in text


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"epochs": 1.5}, "epochs must be an integer, got 1.5"),
        ({"epochs": None}, "epochs must be an integer"),
        ({"flip": "0.5"}, "flip must be a number, got '0.5'"),
        ({"weights": ["x"]}, "weights must be text"),
        ({"save_pretrained": "no"}, "save_pretrained must be true or false"),
        ({"mean": 5}, "mean must be a list of numbers"),
        ({"mean": (0.1, math.nan, 0.1)}, "mean must be three finite numbers"),
        ({"lr": math.nan}, "lr must lie between"),
        ({"size": 31}, "size must lie between 32"),
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adamw, got 'adam'"),
        ({"mean": (1.0, 2.0)}, "mean must be three finite numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"epochs": 2, "warmup": 2.0}, "leaves nothing"),
        ({"cache_size": 36, "crop_ratio": 0.8}, "less than validation takes"),
        ({"size_schedule": "40"}, "SIZE@EPOCH"),
        ({"size_schedule": "40@2,48@2"}, "rising epochs"),
        ({"freeze": True}, "give the weights to start from"),
        ({"batch_size": 1, "size": 64, "size_schedule": "32@0"}, "--batch-size 2 or more, or --size 64 or more"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        options(Path("d"), Path("o"), **changes)


def test_the_size_follows_the_schedule() -> None:
    settings = options(Path("d"), Path("o"), size=64, size_schedule="40@1, 52@3")
    assert [settings.size_at(epoch) for epoch in range(5)] == [64, 40, 40, 52, 52]
    assert options(Path("d"), Path("o"), size=64).size_at(9) == 64


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    settings = options(Path("d"), Path("o"), lr=0.5, lr_batch=4, epochs=5, warmup=1.0, min_lr=0.1)
    optimizer = make_optimizer(nn.Linear(2, 2), settings, global_batch=16)  # the rate is linear in it
    scheduler = make_scheduler(optimizer, settings, steps_per_epoch=10)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    rates.append(optimizer.param_groups[0]["lr"])
    for step, rate in enumerate(rates):
        share = 0.01 + 0.99 * step / 10 if step < 10 else 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 40)) / 2
        assert rate == pytest.approx(2.0 * share, abs=1e-9)


@pytest.mark.parametrize("norm_decay", [True, False])
def test_rates_fall_from_stage_to_stage_and_norms_need_not_decay_as_in_timm(norm_decay: bool) -> None:
    model = create_model("hardnet85", num_classes=3)
    changes: dict[str, Any] = {"weight_decay": 0.1, "norm_decay": norm_decay, "lr": 2.0, "min_lr": 0.5, "epochs": 4}
    changes["optimizer"] = "adamw"
    settings = options(Path("d"), Path("o"), layer_decay=0.7, **changes)
    optimizer = make_optimizer(model, settings, global_batch=4)
    assert isinstance(optimizer, torch.optim.AdamW)
    scheduler = make_scheduler(optimizer, settings, steps_per_epoch=1)
    theirs = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.7)
    scales = {id(parameter): group["lr_scale"] for group in theirs for parameter in group["params"]}
    decays = {id(p): 0.1 if norm_decay else group["weight_decay"] for group in theirs for p in group["params"]}
    groups = optimizer.param_groups
    assert {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]} == decays
    for share in (1.0, 0.5 + (1 + math.cos(math.pi / 4)) / 4):
        ours = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        assert ours == pytest.approx({key: 2.0 * share * scale for key, scale in scales.items()})
        optimizer.step()
        scheduler.step()


def test_what_is_frozen_stays_out_of_training() -> None:
    model = create_model("hardnet85", num_classes=3)
    model.base[:-1].requires_grad_(False)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
        "base.19.3.weight",
        "base.19.3.bias",
    ]
    set_training_mode(model, options(Path("d"), Path("o"), freeze=True, weights="some.pth"))
    assert [name for name, module in model.named_modules() if module.training] == [
        "",
        "base",
        *(name for name, _ in model.named_modules() if name.startswith("base.19")),
    ]
    set_training_mode(model, options(Path("d"), Path("o"), freeze_bn=True))
    for module in model.modules():
        assert module.training is not isinstance(module, nn.BatchNorm2d)


@pytest.mark.parametrize("recipe", ["imagenet", "fashion-mnist-39ds"])
def test_a_recipe_is_a_set_of_options(recipe: str) -> None:
    stages = [TrainOptions("d", "o", **stage) for stage in read_recipe(recipe)]
    assert (stages == [TrainOptions("d", "o")]) is (recipe == "imagenet")  # whose values are the defaults


def test_a_recipe_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    for text, complaint in (
        ('{"epoch": 7}', "unknown options: epoch"),
        ("[1, 2]", "must hold an object, or a list of"),
    ):
        (tmp_path / "own.json").write_text(text)
        with pytest.raises(ValueError, match=complaint):
            read_recipe(str(tmp_path / "own.json"))
    with pytest.raises(ValueError, match="neither a file nor one of fashion-mnist-39ds, imagenet"):
        read_recipe("cifar")
