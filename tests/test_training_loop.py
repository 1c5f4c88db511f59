"""The loop: what it learns, what it writes, and that an interrupted run ends where the uninterrupted one does."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import ONE, assert_same, make_folder, options, read

import hardnet
from hardnet.images.preprocess import Preprocessing
from hardnet.training import Outcome, TrainOptions, train
from hardnet.training.checkpoint import BEST, CHECKPOINT, FINAL, VALIDATION
from hardnet.training.data import ImageSource, Splits, open_data, open_folder
from hardnet.training.loop import Trainer
from hardnet.training.metrics import read_metrics, write_metrics
from hardnet.training.signals import StopRequest
from hardnet.utils.errors import DataError, TrainingError

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
    "val_fraction": 0.125,
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


def run_in_parts(settings: TrainOptions, parts: list[int]) -> Outcome:
    for number, steps in enumerate(parts):
        outcome = Trainer(settings, ONE, StopAfter(steps)).run()
        assert not outcome.finished
        reached = read(outcome.folder / CHECKPOINT)["progress"]
        assert reached["epoch"] * 2 + reached["step"] == sum(parts[: number + 1]) + number + 1
        torch.rand(11)  # a new process would find its generator in another state
    return train(settings)


def test_it_learns_and_leaves_what_it_promises(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", images=16)
    make_folder(tmp_path / "data", images=3, split="val")
    epochs: list[dict[str, Any]] = []
    settings = options(tmp_path / "data", tmp_path / "run", epochs=5, batch_size=8, lr=0.1, lr_batch=8, resume="auto")
    state = torch.get_rng_state()
    outcome = train(settings, epochs.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert outcome == Outcome(tmp_path / "run", 5, True, epochs[-1])
    assert epochs == read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [numbers["epoch"] for numbers in epochs] == [1, 2, 3, 4, 5]
    assert epochs[-1]["train_loss"] < 0.6 * epochs[0]["train_loss"]
    assert epochs[-1]["lr"] == 0
    final = read(tmp_path / "run" / FINAL)
    assert (final["architecture"], final["metrics"]) == ("hardnet39ds", epochs[-1])
    assert final["options"]["seed"] == settings.seed
    assert final["versions"]["torch"] == torch.__version__
    best = min(epochs, key=lambda numbers: (numbers["val_top1_error"], -numbers["epoch"]))  # of several, the last one
    assert read(tmp_path / "run" / BEST)["metrics"] == best
    for name in (FINAL, CHECKPOINT):
        model = hardnet.create_model("hardnet39ds", weights=str(tmp_path / "run" / name))
        assert model.num_classes == 3
        assert model.categories == ("class_0", "class_1", "class_2")
        assert model.preprocessing == Preprocessing(32, 32)
        assert_same(dict(model.state_dict()), dict(final["model"]))
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()
    assert train(settings) == Outcome(tmp_path / "run", 5, True, None)  # nothing is left to do
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == before


def test_a_run_ends_when_no_epoch_gets_better(tmp_path: Path, data: Path) -> None:
    settings = options(data, tmp_path / "run", epochs=9, patience=2, lr=0.0, val_fraction=0.125, resume="auto")
    errors = iter([50.0, 25.0, 25.0, 75.0, 50.0])

    class Scripted(Trainer):
        def _validate(self, source: ImageSource) -> dict[str, Any]:
            return {"val_top1_error": next(errors)}

    assert Scripted(settings, ONE).run().epochs == 5
    assert [read(tmp_path / "run" / name)["metrics"]["epoch"] for name in (BEST, FINAL)] == [3, 5]
    assert train(settings) == Outcome(tmp_path / "run", 5, True, None)  # nothing is left to do


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


def start(settings: TrainOptions) -> subprocess.Popen[bytes]:
    values = {name: value for name, value in vars(settings).items() if value is not None}
    folder = str(Path(hardnet.__file__).parents[1])
    # As many threads as here: with another number, sums are taken in another order, and the last bits differ.
    command = [sys.executable, "-c", COMMAND, repr(values), str(torch.get_num_threads())]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": folder})


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_ended_by_a_signal_ends_like_the_uninterrupted_one(
    tmp_path: Path, data: Path, number: signal.Signals
) -> None:
    changes = {**EVERYTHING, "save_every": 1, "epochs": 3, "batch_size": 2, "workers": 1}
    process = start(options(data, tmp_path / "ended", **changes))
    while not (tmp_path / "ended" / CHECKPOINT).exists():
        assert process.poll() is None, f"ended with {process.returncode} before there was a checkpoint"
        time.sleep(0.005)
    time.sleep(0.2)  # somewhere within the steps that follow
    process.send_signal(number)
    assert process.wait(timeout=120) == (17 if number == signal.SIGTERM else -number)
    position = read(tmp_path / "ended" / CHECKPOINT)["progress"]
    assert (position["epoch"], position["step"]) < (2, 5)
    train(options(data, tmp_path / "ended", resume="auto", **changes))
    train(options(data, tmp_path / "whole", **changes))
    assert_same_run(tmp_path / "whole", tmp_path / "ended")


def test_signals_are_caught_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):  # Ctrl-C after a first signal interrupts at once
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")  # torchrun forwards the Ctrl-C that the ranks have received
    with StopRequest() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert stop.requested


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path, data: Path) -> None:
    settings = options(data, tmp_path / "run", lr=1e30, save_every=1)
    with pytest.raises(
        TrainingError, match=r"the loss is (nan|inf) in epoch 1, step 2 of 6.*rate of [\d.]+e\+\d+"
    ) as caught:
        train(settings)
    assert str(tmp_path / "run" / CHECKPOINT) in str(caught.value)
    content = read(tmp_path / "run" / CHECKPOINT)
    assert content["progress"]["step"] == 1
    assert all(value.isfinite().all() for value in content["model"].values())


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, data: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    changes: dict[str, Any] = {"epochs": 1, "batch_size": 12, "save_every": 1}
    settings = options(data, tmp_path / "run", resume="auto", **changes)
    Trainer(settings, ONE, StopAfter(0)).run()
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # a checkpoint takes more
    try:
        with pytest.raises(TrainingError, match="could not be written, and is as before"):
            train(settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == before
    assert not list((tmp_path / "run").glob("*.tmp")) + list((tmp_path / "run").glob(".*.part"))
    train(settings)
    train(options(data, tmp_path / "whole", **changes))
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = options(data, tmp_path / "run", resume="auto")
    Trainer(settings, ONE, StopAfter(0)).run()

    def refused(match: str, error: type[Exception] = TrainingError, **changes: Any) -> None:
        with pytest.raises(error, match=match):
            Trainer(replace(settings, **changes), ONE)

    make_folder(tmp_path / "two", classes=2, images=12)
    make_folder(tmp_path / "more", images=9)
    refused(r"was made with classes 3 \(now 2\)", data=tmp_path / "two")
    refused(r"was made with training images 24 \(now 27\)", data=tmp_path / "more")
    refused(r"was made with images per global batch 4 \(now 8\)", batch_size=8)
    changes = {"model": "hardnet68ds", "epochs": 3, "lr": 0.1}
    refused(r"was made with model 'hardnet39ds' \(now 'hardnet68ds'\), epochs 2 \(now 3\), lr 0.05", **changes)
    refused("24 training images do not fill one global batch of 50", DataError, batch_size=25, accumulate=2)
    Trainer(replace(settings, resume="none"), ONE)  # not one epoch was complete: it starts over
    write_metrics(tmp_path / "run", {"epoch": 1})
    refused("holds a run already: go on with --resume auto", ValueError, resume="none")
    path = tmp_path / "run" / CHECKPOINT
    content = read(path)
    for change, match in (
        ({"optimizer": {}}, "is not a valid training checkpoint"),
        ({"progress": {"epoch": 1, "extra": 2}}, "is not a valid training checkpoint"),
        ({"options": {}, "counts": None}, "is not a valid training checkpoint"),
        ({"versions": os.system}, "cannot be read"),
    ):
        torch.save(content | change, path)
        refused(match)
    monkeypatch.setattr(ONE, "gather", lambda path: [path, None])
    with pytest.raises(TrainingError, match="all machines must share it"):
        Trainer(settings, ONE, data=open_data(settings))


CRASH = """
import sys
from hardnet.cli import main
from hardnet.training.loop import Trainer

def fail(self, batch):
    raise RuntimeError("out of memory")

Trainer._loss = fail
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


def test_bad_images_are_skipped_counted_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path / "data")
    for index in (1, 4):
        (folder / "class_1" / f"{index}.png").write_bytes(b"no image")
    unchecked = Splits(open_folder(folder), None)
    with pytest.raises(hardnet.ImageError, match=re.escape(str(folder / "class_1"))):
        train(options(tmp_path / "data", tmp_path / "run", epochs=1), data=unchecked)
    train(options(tmp_path / "data", tmp_path / "run", epochs=2, skip_bad_images=True), data=unchecked)
    assert [epoch["skipped_images"] for epoch in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [2, 2]
    assert sorted(re.findall(r"skipped \S+/(\d)\.png", caplog.text)) == ["1", "4"]
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")
    for opened, message in ((unchecked, "none of the training images can"), (None, "none of the images can be read")):
        with pytest.raises(DataError, match=message):
            train(options(tmp_path / "data", tmp_path / "bad", skip_bad_images=True), data=opened)


def test_names_that_are_not_utf_8_are_trained_on(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", split="plain")
    (folder / "class_1").rename(folder / os.fsdecode(b"\xe4"))
    (folder / "class_2" / "0.png").rename(folder / "class_2" / os.fsdecode(b"\xfc.png"))
    train(options(folder, tmp_path / "run", epochs=1, val_fraction=0.5))
    assert read(tmp_path / "run" / FINAL)["classes"] == ["class_0", "class_2", os.fsdecode(b"\xe4")]
    assert b"\xe4/" in (tmp_path / "run" / VALIDATION).read_bytes()
