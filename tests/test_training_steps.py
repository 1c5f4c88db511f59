"""One step of the optimiser: averages, accumulation, clipping, mixed precision, compiled models, distillation."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_data import ONE, make_folder, options

import hardnet
from hardnet.training import TrainOptions, train
from hardnet.training.checkpoint import FINAL
from hardnet.training.components import set_training_mode
from hardnet.training.loop import Trainer
from hardnet.utils.errors import DataError


def test_the_average_is_the_exponential_one(tmp_path: Path, small_data: Path) -> None:
    trainer = Trainer(options(small_data, tmp_path, ema=0.24), ONE)
    assert trainer.model_ema is not None
    batches = trainer._batches()
    trainer.model.train()
    expected: dict[str, Tensor] = {}
    for step in range(3):
        trainer._train_step([next(batches)])
        for name, value in trainer.model.state_dict().items():
            if value.is_floating_point():
                old = expected.get(name)
                decay = (0, 2 / 11, 0.24)[step]  # less at the start
                expected[name] = value.clone() if old is None else decay * old + (1 - decay) * value
    averaged = trainer.model_ema.module.state_dict()
    assert len(expected) > 300
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value, rtol=1e-5, atol=1e-6)


def one_step(settings: TrainOptions, batches: int = 1) -> Trainer:
    trainer = Trainer(settings, ONE)
    source = trainer._batches()
    set_training_mode(trainer.model, settings)
    trainer._train_step([next(source) for _ in range(batches)])
    return trainer


def parameters(trainer: Trainer) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in trainer.model.parameters()])


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path, small_data: Path) -> None:
    changes: dict[str, Any] = {"freeze_bn": True, "drop_rate": 0.0, "lr_batch": 8, "lr": 0.01}
    whole = one_step(options(small_data, tmp_path, batch_size=8, **changes))
    parts = one_step(options(small_data, tmp_path, batch_size=2, accumulate=4, **changes), batches=4)
    torch.testing.assert_close(parameters(parts), parameters(whole), rtol=1e-5, atol=1e-6)
    assert not torch.equal(parameters(Trainer(options(small_data, tmp_path, **changes), ONE)), parameters(whole))


def test_rare_classes_weigh_more(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=2, images=2)
    make_folder(tmp_path, classes=1, images=8)
    trainer = Trainer(options(tmp_path, tmp_path / "run", class_weights="balanced", batch_size=10), ONE)
    batch = next(trainer._batches())
    trainer.model.eval()
    losses = torch.nn.functional.cross_entropy(trainer.model(batch.images), batch.labels, reduction="none")
    expected = (losses[batch.labels == 0].mean() + losses[batch.labels == 1].mean()) / 2
    torch.testing.assert_close(trainer._loss(batch), expected)


def test_the_gradient_is_clipped(tmp_path: Path, small_data: Path) -> None:
    def norm(clip: float) -> float:
        trainer = one_step(options(small_data, tmp_path, clip=clip))
        gradients = [p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]
        return float(torch.stack(gradients).norm())

    free = norm(0.0)
    assert norm(free / 2) == pytest.approx(free / 2, rel=1e-3)


def test_bfloat16_takes_nearly_the_same_step(tmp_path: Path, small_data: Path) -> None:
    changes: dict[str, Any] = {"freeze_bn": True, "lr": 0.01, "drop_rate": 0.0}
    start = parameters(Trainer(options(small_data, tmp_path, **changes), ONE))
    plain, mixed = (
        parameters(one_step(options(small_data, tmp_path, amp=amp, **changes))) - start for amp in ("none", "bf16")
    )
    assert 0 < float((plain - mixed).norm() / plain.norm()) < 0.1


def test_float16_scales_the_loss_until_the_gradients_fit(tmp_path: Path, small_data: Path) -> None:
    settings = options(small_data, tmp_path, amp="fp16", clip=1.0, epochs=4, resume="auto")
    trainer = Trainer(settings, ONE)
    batch = next(trainer._batches())
    trainer.model.train()
    start = parameters(trainer)
    skipped = 0
    while torch.equal(parameters(trainer), start):  # the first scale, 65536, is too much for a new network
        trainer._train_step([batch])
        skipped += 1
        assert skipped < 16
    assert parameters(trainer).isfinite().all()
    assert trainer.scaler.get_scale() == 65536 / 2 ** (skipped - 1)
    trainer.progress.epoch, trainer.progress.step = divmod(skipped, trainer.steps_per_epoch)
    trainer._save()
    resumed = Trainer(settings, ONE)
    assert resumed.scaler.state_dict() == trainer.scaler.state_dict()
    assert resumed.scheduler.last_epoch == skipped  # the curve follows the steps, also those not taken


def test_the_step_runs_the_compiled_model(tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    one_step(options(small_data, tmp_path, compile=True))
    assert len(compiled) == 1


def test_a_student_learns_the_mean_probabilities_of_its_teachers(tmp_path: Path, small_data: Path) -> None:
    for seed in (1, 2):
        train(options(small_data, tmp_path / f"teacher-{seed}", epochs=1, seed=seed))
    teachers = [str(tmp_path / f"teacher-{seed}" / FINAL) for seed in (1, 2)]
    teacher = f"{teachers[0]}, hardnet39ds:{teachers[1]}"
    settings = options(small_data, tmp_path / "run", teacher=teacher, teacher_share=0.75, temperature=2.0)
    trainer = Trainer(settings, ONE)
    batch = next(trainer._batches())
    trainer.model.eval()
    logits = trainer.model(batch.images)
    models = [hardnet.create_model("hardnet39ds", weights=weights).eval() for weights in teachers]
    soft = torch.stack([(model(batch.images).detach() / 2).softmax(1) for model in models]).mean(0)
    hard_loss = torch.nn.functional.cross_entropy(logits, batch.labels)
    soft_loss = -(soft * (logits / 2).log_softmax(1)).sum(1).mean() * 4
    torch.testing.assert_close(trainer._loss(batch), 0.25 * hard_loss + 0.75 * soft_loss)
    assert train(dataclasses.replace(settings, epochs=1)).finished
    make_folder(tmp_path / "two", classes=2, images=12)
    with pytest.raises(DataError, match="was trained on other classes"):
        Trainer(options(tmp_path / "two", tmp_path / "new", teacher=teachers[1]), ONE)
