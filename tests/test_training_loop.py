"""The loop: what it learns, what it writes, and that an interrupted run ends where the uninterrupted one does."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_data import make_folder, options

import hardnet
from hardnet.images.preprocess import Preprocessing
from hardnet.training import Outcome, TrainOptions, train
from hardnet.training.build import set_training_mode
from hardnet.training.checkpoint import CHECKPOINT, restore
from hardnet.training.distributed import Ranks
from hardnet.training.loop import BEST, FINAL, Trainer
from hardnet.training.metrics import read_metrics
from hardnet.training.steps import StopRequest
from hardnet.utils.errors import DataError, TrainingError

ONE = Ranks(0, 1, torch.device("cpu"))

# Everything that draws random numbers or keeps a state.
EVERYTHING: dict[str, Any] = {
    "mixup": 0.4,
    "cutmix": 1.0,
    "drop_rate": 0.3,
    "ema": 0.8,
    "accumulate": 2,
    "clip": 1.0,
    "warmup": 0.5,
    "label_smoothing": 0.1,
    "erase": 0.5,
    "hold_out": 4,
    "size_schedule": "32@0,36@1",
}


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardnet.training.loop.draw_curves", lambda folder: None)  # takes longer than the run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_folder(root)
    return root


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def assert_same(one: Any, other: Any, where: str = "checkpoint") -> None:
    """Equal to the last bit, all the way down."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert one == other, where


def assert_same_run(one: Path, other: Path) -> None:
    contents = [read(folder / CHECKPOINT) for folder in (one, other)]
    for content in contents:
        del content["options"]
    assert_same(*contents)
    weights = [read(folder / FINAL)["model"] for folder in (one, other)]
    assert_same(*weights)
    lines = [
        [{name: value for name, value in epoch.items() if "second" not in name} for epoch in read_metrics(file)]
        for file in (one / "metrics.jsonl", other / "metrics.jsonl")
    ]
    assert lines[0] == lines[1]


class StopAfter(StopRequest):
    """A signal that arrives during the given step."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        super().__init__()

    @property
    def requested(self) -> bool:
        self._steps -= 1
        return self._steps < 0

    @requested.setter
    def requested(self, value: bool) -> None:
        pass


def run_in_parts(wanted: TrainOptions, parts: list[int]) -> Outcome:
    for number, steps in enumerate(parts):
        outcome = Trainer(wanted, ONE, StopAfter(steps)).run()
        assert not outcome.finished
        reached = read(outcome.folder / CHECKPOINT)["progress"]
        assert reached["epoch"] * 2 + reached["step"] == sum(parts[: number + 1]) + number + 1
        torch.rand(11)  # a new process would find its generator in another state
    return train(wanted)


def test_it_learns_and_leaves_what_it_promises(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", images=16)
    make_folder(tmp_path / "data", images=3, split="val")
    seen: list[dict[str, Any]] = []
    wanted = options(tmp_path / "data", tmp_path / "run", epochs=5, batch_size=8, lr=0.1, lr_batch=8, resume="auto")
    state = torch.get_rng_state()
    outcome = train(wanted, seen.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert outcome == Outcome(tmp_path / "run", 5, True, seen[-1])
    assert seen == read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [numbers["epoch"] for numbers in seen] == [1, 2, 3, 4, 5]
    assert seen[-1]["train_loss"] < 0.6 * seen[0]["train_loss"]
    assert seen[-1]["lr"] == 0
    final = read(tmp_path / "run" / FINAL)
    assert (final["architecture"], final["metrics"]) == ("hardnet39ds", seen[-1])
    assert final["options"]["seed"] == wanted.seed
    assert final["versions"]["torch"] == torch.__version__
    best = min(numbers["val_top1_error"] for numbers in seen)
    assert read(tmp_path / "run" / BEST)["metrics"]["val_top1_error"] == best
    for name in (FINAL, CHECKPOINT):
        model = hardnet.create_model("hardnet39ds", weights=str(tmp_path / "run" / name))
        assert model.num_classes == 3
        assert model.weights_record is not None
        assert model.weights_record.categories == ("class_0", "class_1", "class_2")
        assert model.weights_record.preprocessing == Preprocessing(32, 32)
        assert_same(dict(model.state_dict()), dict(final["model"]))
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()
    assert train(wanted) == Outcome(tmp_path / "run", 5, True, None)  # nothing is left to do
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("parts", [[1], [0, 1]])
def test_a_run_stopped_at_any_step_ends_like_the_uninterrupted_one(
    tmp_path: Path, data: Path, parts: list[int]
) -> None:
    train(options(data, tmp_path / "whole", **EVERYTHING))
    outcome = run_in_parts(options(data, tmp_path / "parts", resume="auto", **EVERYTHING), parts)
    assert outcome.finished
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


COMMAND = """
import sys, torch
from hardnet.training import TrainOptions, train
torch.set_num_threads(int(sys.argv[2]))
sys.exit(0 if train(TrainOptions(**eval(sys.argv[1]))).finished else 17)
"""


def start(wanted: TrainOptions) -> subprocess.Popen[bytes]:
    values = {name: value for name, value in vars(wanted).items() if value is not None}
    folder = str(Path(hardnet.__file__).parents[1])
    # As many threads as here: with another number, sums are taken in another order, and the last bits differ.
    command = [sys.executable, "-c", COMMAND, repr(values), str(torch.get_num_threads())]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": folder})


def wait_for(path: Path, process: subprocess.Popen[Any]) -> None:
    while not path.exists():
        assert process.poll() is None, f"ended with {process.returncode} before {path.name} was there"
        time.sleep(0.005)


@pytest.mark.slow
def test_a_run_killed_by_sigkill_ends_like_the_uninterrupted_one(tmp_path: Path, data: Path) -> None:
    changes = {**EVERYTHING, "save_every": 1, "epochs": 3, "batch_size": 2, "workers": 1}
    process = start(options(data, tmp_path / "killed", **changes))
    wait_for(tmp_path / "killed" / CHECKPOINT, process)
    time.sleep(0.2)  # somewhere within the steps that follow
    process.kill()
    assert process.wait() == -signal.SIGKILL
    position = read(tmp_path / "killed" / CHECKPOINT)["progress"]
    assert (position["epoch"], position["step"]) < (2, 5)
    train(options(data, tmp_path / "killed", resume="auto", **changes))
    train(options(data, tmp_path / "whole", **changes))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_sigterm_saves_and_exits_in_good_order(tmp_path: Path, data: Path) -> None:
    changes = {**EVERYTHING, "epochs": 1000, "workers": 1}
    process = start(options(data, tmp_path / "run", **changes))
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    process.terminate()
    assert process.wait(timeout=120) == 17
    position = read(tmp_path / "run" / CHECKPOINT)["progress"]
    assert position["epoch"] < 1000
    assert (position["epoch"], position["step"]) != (0, 0)
    outcome = Trainer(options(data, tmp_path / "run", resume="auto", **changes), ONE, StopAfter(0)).run()
    reached = read(tmp_path / "run" / CHECKPOINT)["progress"]
    assert not outcome.finished
    assert reached["epoch"] * 2 + reached["step"] == position["epoch"] * 2 + position["step"] + 1
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_signals_are_caught_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):  # Ctrl-C after a first signal interrupts at once
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # a third signal does not interrupt the clean-up
    assert signal.getsignal(signal.SIGTERM) == before

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")  # torchrun forwards the Ctrl-C that the ranks have received
    with StopRequest() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert stop.requested


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path, data: Path) -> None:
    wanted = options(data, tmp_path / "run", lr=1e30, save_every=1)
    with pytest.raises(
        TrainingError, match=r"the loss is (nan|inf) in epoch 1, step 2 of 6.*rate of [\d.]+e\+\d+"
    ) as caught:
        train(wanted)
    assert str(tmp_path / "run" / CHECKPOINT) in str(caught.value)
    content = read(tmp_path / "run" / CHECKPOINT)
    assert content["progress"]["step"] == 1
    assert all(value.isfinite().all() for value in content["model"].values())


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, data: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    changes: dict[str, Any] = {"epochs": 1, "batch_size": 12, "save_every": 1}
    wanted = options(data, tmp_path / "run", resume="auto", **changes)
    Trainer(wanted, ONE, StopAfter(0)).run()
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # a checkpoint takes more
    try:
        with pytest.raises(TrainingError, match=r"could not be written: .*the previous one is untouched"):
            train(wanted)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == before
    assert not list((tmp_path / "run").glob("*.tmp")) + list((tmp_path / "run").glob(".*.part"))
    train(wanted)
    train(options(data, tmp_path / "whole", **changes))
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, data: Path) -> None:
    Trainer(options(data, tmp_path / "run"), ONE, StopAfter(0)).run()
    path = tmp_path / "run" / CHECKPOINT

    def refused(match: str, where: Path = data, output: str = "run", **changes: Any) -> None:
        with pytest.raises(TrainingError, match=match):
            Trainer(options(where, tmp_path / output, **{"resume": "auto", **changes}), ONE)

    refused("is a checkpoint of hardnet39ds, this run trains hardnet68ds", model="hardnet68ds")
    make_folder(tmp_path / "two", classes=2, images=12)
    refused("was made with 3 classes, this run has 2", where=tmp_path / "two")
    make_folder(tmp_path / "more", images=9)
    refused("was made with 24 training images, this run has 27", where=tmp_path / "more")
    refused("was made with 4 images per global batch, this run has 8", batch_size=8)
    torch.save(hardnet.create_model("hardnet39ds", num_classes=3).state_dict(), tmp_path / "other.pth")
    refused(r"was made with weights None \(now '\S+other.pth'\)", weights=str(tmp_path / "other.pth"))
    refused(r"was made with epochs 2 \(now 3\), lr 0.05 \(now 0.1\)", epochs=3, lr=0.1)
    refused("holds a run already: go on with --resume auto", resume="")
    refused("no such checkpoint", output="new", resume=str(tmp_path / "nothing.pt"))
    final = tmp_path / "final.pt"
    torch.save({"model": read(path)["model"]}, final)
    refused("is no checkpoint of a training run", output="new", resume=str(final))
    torch.save({"model": Path("x"), "optimizer": os.system}, final)
    refused("is damaged, or no checkpoint", output="new", resume=str(final))
    path.write_bytes(path.read_bytes()[:100_000])
    refused("is damaged, or no checkpoint")


def change(content: dict[str, Any], change: str) -> None:
    name, _, value = change.partition("=")
    *path, last = name.split(".")
    for key in path:
        content = content[key]
    if value:
        content[last] = eval(value)  # noqa: S307  of the test's own list
    else:
        del content[last]


@pytest.mark.parametrize(
    "what",
    [
        *("model", "progress", "scheduler", "optimizer={}", "model_ema=None", "model={}", "progress.extra=1"),
        *("optimizer.param_groups=[]", "optimizer.state=3"),
    ],
)
def test_a_checkpoint_of_the_wrong_structure_is_refused(
    stopped: tuple[Trainer, Path], tmp_path: Path, what: str
) -> None:
    trainer, checkpoint = stopped
    content = read(checkpoint)
    change(content, what)
    torch.save(content, tmp_path / "changed.pt")
    with pytest.raises(TrainingError, match="is not a valid training checkpoint"):
        restore(tmp_path / "changed.pt", trainer.parts, trainer._facts)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Trainer, Path]:
    """A run that was stopped after its first step, and its checkpoint."""
    trainer = Trainer(options(data, tmp_path_factory.mktemp("run"), ema=0.5), ONE, StopAfter(0))
    return trainer, trainer.run().folder / CHECKPOINT


CRASH = """
import sys
from hardnet.cli import main
from hardnet.training.steps import Stepper

def fail(self, batch):
    raise RuntimeError("out of memory")

Stepper._loss = fail
sys.exit(main(sys.argv[1:]))
"""


def test_an_unforeseen_exception_ends_the_process(tmp_path: Path, data: Path) -> None:
    """Data workers ignore SIGTERM, and Python waits for them at exit unless they were ended before."""
    command = ["train", data, "--output", tmp_path / "run", "--workers", 2, "--batch-size", 2, "--size", 32]
    ended = subprocess.run(
        [sys.executable, "-c", CRASH, *map(str, command), "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(Path(hardnet.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "RuntimeError: out of memory" in ended.stderr


def test_too_few_images_or_other_classes_are_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(DataError, match="24 training images do not fill one global batch of 50"):
        Trainer(options(data, tmp_path, batch_size=25, accumulate=2), ONE)
    with pytest.raises(DataError, match="has 3 classes, not 10"):
        Trainer(options(data, tmp_path, num_classes=10), ONE)


def test_the_average_is_the_exponential_one(tmp_path: Path, data: Path) -> None:
    trainer = Trainer(options(data, tmp_path, ema=0.7), ONE)
    assert trainer.parts.model_ema is not None
    batches = trainer._batches()
    trainer.parts.model.train()
    expected: dict[str, Tensor] = {}
    for step in range(3):
        trainer._train_step([next(batches)])
        for name, value in trainer.parts.model.state_dict().items():
            if value.is_floating_point():
                old = expected.get(name)
                expected[name] = value.clone() if step == 0 or old is None else 0.7 * old + 0.3 * value
    averaged = trainer.parts.model_ema.module.state_dict()
    assert len(expected) > 300
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value, rtol=1e-5, atol=1e-6)


def one_step(wanted: TrainOptions, batches: int = 1) -> Trainer:
    trainer = Trainer(wanted, ONE)
    source = trainer._batches()
    set_training_mode(trainer.parts.model, wanted)
    trainer._train_step([next(source) for _ in range(batches)])
    return trainer


def parameters(trainer: Trainer) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in trainer.parts.model.parameters()])


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path, data: Path) -> None:
    changes: dict[str, Any] = {"freeze_bn": True, "drop_rate": 0.0, "lr_batch": 8, "lr": 0.01}
    whole = one_step(options(data, tmp_path, batch_size=8, **changes))
    parts = one_step(options(data, tmp_path, batch_size=2, accumulate=4, **changes), batches=4)
    torch.testing.assert_close(parameters(parts), parameters(whole), rtol=1e-5, atol=1e-6)
    assert not torch.equal(parameters(Trainer(options(data, tmp_path, **changes), ONE)), parameters(whole))


def test_the_gradient_is_clipped(tmp_path: Path, data: Path) -> None:
    def norm(clip: float) -> float:
        trainer = one_step(options(data, tmp_path, clip=clip))
        gradients = [p.grad.norm() for p in trainer.parts.model.parameters() if p.grad is not None]
        return float(torch.stack(gradients).norm())

    free = norm(0.0)
    assert norm(free / 2) == pytest.approx(free / 2, rel=1e-3)


def test_bfloat16_takes_nearly_the_same_step(tmp_path: Path, data: Path) -> None:
    changes: dict[str, Any] = {"freeze_bn": True, "lr": 0.01, "drop_rate": 0.0}
    start = parameters(Trainer(options(data, tmp_path, **changes), ONE))
    plain = parameters(one_step(options(data, tmp_path, **changes))) - start
    mixed = parameters(one_step(options(data, tmp_path, amp="bf16", **changes))) - start
    assert not torch.equal(plain, mixed)
    assert float((plain - mixed).norm() / plain.norm()) < 0.1


def test_float16_scales_the_loss_until_the_gradients_fit(tmp_path: Path, data: Path) -> None:
    wanted = options(data, tmp_path, amp="fp16", clip=1.0, epochs=4, resume="auto")
    trainer = Trainer(wanted, ONE)
    batch = next(trainer._batches())
    trainer.parts.model.train()
    start = parameters(trainer)
    skipped = 0
    while torch.equal(parameters(trainer), start):  # the first scale, 65536, is too much for a new network
        trainer._train_step([batch])
        skipped += 1
        assert skipped < 16
    assert parameters(trainer).isfinite().all()
    assert trainer.parts.scaler.get_scale() == 65536 / 2 ** (skipped - 1)
    trainer.position.epoch, trainer.position.step = divmod(skipped, trainer.steps_per_epoch)
    trainer._save()
    resumed = Trainer(wanted, ONE)
    assert resumed.parts.scaler.state_dict() == trainer.parts.scaler.state_dict()
    assert resumed.parts.scheduler.last_epoch == skipped  # the curve follows the steps, also those not taken


def test_the_step_runs_the_compiled_model(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def without_code_generation(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Tensor) -> Tensor:
            calls.append(arguments)
            return function(*arguments)

        return call

    monkeypatch.setattr(torch, "compile", without_code_generation)
    plain = one_step(options(data, tmp_path))
    assert not calls
    compiled = one_step(options(data, tmp_path, compile=True))
    assert len(calls) == 1
    assert_same(dict(compiled.parts.model.state_dict()), dict(plain.parts.model.state_dict()))


def test_fine_tuning_trains_the_head_alone(tmp_path: Path, data: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.manual_seed(1)
    start = hardnet.create_model("hardnet39ds", num_classes=7).state_dict()
    torch.save(start, weights)
    train(options(data, tmp_path / "run", epochs=1, weights=str(weights), freeze=True))
    trained = read(tmp_path / "run" / FINAL)["model"]
    head = ("base.14.3.weight", "base.14.3.bias")
    assert trained[head[0]].shape == (3, 1024)
    for name, value in trained.items():
        if name not in head:
            assert torch.equal(value, start[name]), name
    assert float(trained[head[1]].abs().max()) > 0


def test_bad_images_are_skipped_and_counted_in_the_metrics(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    for index in (1, 4):
        (folder / "class_1" / f"{index}.png").write_bytes(b"no image")
    with pytest.raises(hardnet.ImageError, match=re.escape(str(folder / "class_1"))):
        train(options(tmp_path / "data", tmp_path / "run", epochs=1))
    train(options(tmp_path / "data", tmp_path / "run", epochs=1, skip_bad_images=True))
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["skipped_images"] == 2


def test_a_student_learns_the_mean_probabilities_of_its_teachers(tmp_path: Path, data: Path) -> None:
    for seed in (1, 2):
        train(options(data, tmp_path / f"teacher-{seed}", epochs=1, seed=seed))
    teachers = [str(tmp_path / f"teacher-{seed}" / FINAL) for seed in (1, 2)]
    teacher = f"{teachers[0]}, hardnet39ds:{teachers[1]}"
    wanted = options(data, tmp_path / "run", teacher=teacher, teacher_share=0.75, temperature=2.0)
    trainer = Trainer(wanted, ONE)
    batch = next(trainer._batches())
    trainer.parts.model.eval()
    logits = trainer.parts.model(batch.images)
    models = [hardnet.create_model("hardnet39ds", weights=weights).eval() for weights in teachers]
    soft = torch.stack([(model(batch.images).detach() / 2).softmax(1) for model in models]).mean(0)
    hard_loss = torch.nn.functional.cross_entropy(logits, batch.labels)
    soft_loss = -(soft * (logits / 2).log_softmax(1)).sum(1).mean() * 4
    torch.testing.assert_close(trainer._stepper._loss(batch), 0.25 * hard_loss + 0.75 * soft_loss)
    assert train(dataclasses.replace(wanted, epochs=1)).finished
    make_folder(tmp_path / "two", classes=2, images=12)
    with pytest.raises(ValueError, match="was trained on other classes"):
        Trainer(options(tmp_path / "two", tmp_path / "new", teacher=teachers[1]), ONE)
    with pytest.raises(ValueError, match="has no weights of 3 classes"):
        Trainer(options(data, tmp_path / "new", teacher="hardnet68"), ONE)
