"""The options of a run, the optimiser and the curve of the learning rate that follow from them."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_data import options

from hardnet import create_model
from hardnet.cli.train import add_train_arguments
from hardnet.training.optim import freeze_backbone, make_optimizer, make_scheduler, scaled_lr, set_training_mode
from hardnet.training.options import TrainOptions, parse_size_schedule


def test_the_defaults_are_the_recipe_for_imagenet() -> None:
    wanted = TrainOptions(data="d", output="o")
    assert (wanted.optimizer, wanted.momentum, wanted.lr, wanted.lr_batch) == ("sgd", 0.9, 0.05, 256)
    assert (wanted.batch_size, wanted.weight_decay, wanted.epochs) == (256, 6e-5, 150)
    assert (wanted.crop, wanted.size, wanted.flip, wanted.min_scale) == ("resized", 224, 0.5, 0.08)
    assert (wanted.min_lr, wanted.warmup, wanted.ema, wanted.amp, wanted.label_smoothing) == (0, 0, 0, "none", 0)


def test_every_option_is_a_flag_with_the_same_default() -> None:
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    arguments = vars(parser.parse_args(["somewhere", "--output", "o"]))
    assert TrainOptions(**{name: arguments[name] for name in vars(TrainOptions("somewhere", "o"))}) == TrainOptions(
        data="somewhere", output="o"
    )
    assert set(arguments) == {field.name for field in dataclasses.fields(TrainOptions)} | {"threads"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"epochs": 0}, "epochs must lie between 1"),
        ({"lr": math.nan}, "lr must lie between"),
        ({"lr": -1.0}, "lr must lie between"),
        ({"size": 31}, "size must lie between 32"),
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adamw, got 'adam'"),
        ({"amp": "fp8"}, "amp must be one of none, bf16, fp16"),
        ({"mean": (1.0, 2.0)}, "mean takes three numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "std takes three numbers"),
        ({"label_smoothing": 1.0}, "label_smoothing must be less than 1"),
        ({"size_schedule": "40"}, "SIZE@EPOCH"),
        ({"size_schedule": "16@0"}, "SIZE@EPOCH"),
        ({"size_schedule": "40@2,48@2"}, "must rise"),
        ({"freeze": True}, "give the weights to start from"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        options(Path("d"), Path("o"), **changes)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="learning_rate"):
        options(Path("d"), Path("o"), learning_rate=1)


def test_the_size_follows_the_schedule() -> None:
    assert parse_size_schedule("") == []
    assert parse_size_schedule("40@0, 52@10") == [(40, 0), (52, 10)]
    wanted = options(Path("d"), Path("o"), size=64, size_schedule="40@1,52@3")
    assert [wanted.size_at(epoch) for epoch in range(5)] == [64, 40, 40, 52, 52]
    assert options(Path("d"), Path("o"), size=64).size_at(9) == 64


def test_the_learning_rate_scales_with_the_global_batch() -> None:
    wanted = options(Path("d"), Path("o"), lr=0.1, lr_batch=64, batch_size=16, accumulate=2)
    assert scaled_lr(wanted, ranks=1) == pytest.approx(0.05)
    assert scaled_lr(wanted, ranks=4) == pytest.approx(0.2)


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    wanted = options(Path("d"), Path("o"), lr=2.0, epochs=5, warmup=1.0, min_lr=0.1)
    weight = nn.Linear(2, 2)
    optimizer = make_optimizer(weight, wanted, ranks=1)
    scheduler = make_scheduler(optimizer, wanted, steps_per_epoch=10)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    rates.append(optimizer.param_groups[0]["lr"])
    for step, rate in enumerate(rates):
        share = 0.01 + 0.99 * step / 10 if step < 10 else 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 40)) / 2
        assert rate == pytest.approx(2.0 * share, abs=1e-9)
    with pytest.raises(ValueError, match="leaves nothing"):
        make_scheduler(optimizer, options(Path("d"), Path("o"), epochs=2, warmup=2.0), steps_per_epoch=10)


def test_weight_decay_can_be_kept_off_norms_and_biases() -> None:
    model = create_model("hardnet39ds", num_classes=3)
    wanted = options(Path("d"), Path("o"), weight_decay=0.1, norm_decay=False)
    decays = {
        id(parameter): group["weight_decay"]
        for group in make_optimizer(model, wanted, ranks=1).param_groups
        for parameter in group["params"]
    }
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            plain = isinstance(module, nn.BatchNorm2d) or name == "bias"
            assert decays.pop(id(parameter)) == (0.0 if plain else 0.1)
    assert not decays
    everywhere = make_optimizer(model, options(Path("d"), Path("o"), weight_decay=0.1), ranks=1)
    assert [group["weight_decay"] for group in everywhere.param_groups] == [0.1]


def test_the_optimisers_are_those_asked_for() -> None:
    model = nn.Linear(2, 2)
    sgd = make_optimizer(model, options(Path("d"), Path("o"), momentum=0.8), ranks=1)
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)
    adamw = make_optimizer(model, options(Path("d"), Path("o"), optimizer="adamw", weight_decay=0.3), ranks=1)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["weight_decay"] == 0.3


def test_what_is_frozen_stays_out_of_training() -> None:
    model = create_model("hardnet85", num_classes=3)
    freeze_backbone(model)
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
