"""The ranks of torchrun on CPU: the same training as one process, the same counts, stops that all agree on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_data import make_folder, options

import hardnet
from hardnet.images.preprocess import Preprocessing
from hardnet.training import TrainOptions, evaluate, train
from hardnet.training.data import FolderSource
from hardnet.training.distributed import Ranks, connect
from hardnet.training.loop import FINAL
from hardnet.training.metrics import read_metrics

PROGRAM = """
import json, sys, torch
from pathlib import Path
import hardnet
from hardnet.weights.catalog import Preprocessing
from hardnet.images.preprocess import Preprocessing
from hardnet.training import TrainOptions, evaluate, train
from hardnet.training.data import FolderSource
from hardnet.training.distributed import connect
from hardnet.training.loop import Trainer
from hardnet.training.steps import StopRequest

class StopSecondRank(StopRequest):
    steps = 0
    @property
    def requested(self):
        self.steps += 1
        return ranks.rank == 1 and self.steps == 2
    @requested.setter
    def requested(self, value):
        pass

torch.set_num_threads(1)
task = json.loads(Path(sys.argv[1]).read_text())
with connect("cpu") as ranks:
    if task["stop"]:
        assert not Trainer(TrainOptions(**task["stop"]), ranks, StopSecondRank()).run().finished
    for wanted in task["train"]:
        assert train(TrainOptions(**wanted)).finished
    model = hardnet.create_model("hardnet39ds", weights=task["weights"]).eval()
    source = FolderSource(Path(task["evaluate"]))
    result = evaluate(model, source, Preprocessing(32, 32), ranks, batch_size=4,
                      skip_bad_images=True)
    counted = [ranks.rank, ranks.size, result.images, result.top1, result.top5, result.bad]
    # Not printed: the lines of several ranks run into one another.
    Path(sys.argv[1]).with_name(f"rank-{ranks.rank}.json").write_text(json.dumps(counted))
"""


def torchrun(folder: Path, ranks: int, task: dict[str, Any]) -> list[Any]:
    """Run the program on some ranks and return what each of them counted."""
    (folder / "program.py").write_text(PROGRAM)
    (folder / "task.json").write_text(json.dumps(task))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    subprocess.run(
        [*command, str(folder / "program.py"), str(folder / "task.json")],
        env={**os.environ, "PYTHONPATH": str(Path(hardnet.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        check=True,
    )
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


def plain(wanted: TrainOptions) -> dict[str, Any]:
    return {name: value for name, value in vars(wanted).items() if value is not None}


def weights(path: Path) -> dict[str, Tensor]:
    model: dict[str, Tensor] = torch.load(path, weights_only=True)["model"]
    return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """Runs of one rank and of two, and what the two counted; made together, since starting ranks takes long."""
    root = tmp_path_factory.mktemp("runs")
    data = root / "data"
    make_folder(data)
    make_folder(data, images=11, split="val")  # 33 images; two of them broken leave 31, a prime number
    for broken in ("class_0/3.png", "class_2/10.png"):
        (data / "val" / broken).write_bytes(b"not an image")
    same: dict[str, Any] = {
        "freeze_bn": True,  # on CPU there are no statistics over all ranks
        "drop_rate": 0.0,  # each rank drops others
        "label_smoothing": 0.1,
        "ema": 0.5,
        "clip": 1.0,
        "lr": 0.02,
        "lr_batch": 8,
        "skip_bad_images": True,
        "epochs": 1,
    }
    train(options(data, root / "one", batch_size=8, **same))
    stopped: dict[str, Any] = {"batch_size": 4, "ema": 0.9, "drop_rate": 0.2, "hold_out": 4, "mixup": 0.2}
    halves, quarters, whole, resumed = (
        plain(wanted)
        for wanted in (
            options(data, root / "halves", batch_size=4, **same),
            options(data, root / "quarters", batch_size=2, accumulate=2, **same),
            options(data, root / "whole", **stopped),
            options(data, root / "resumed", resume="auto", **stopped),
        )
    )
    task = {
        "stop": resumed,
        "train": [halves, quarters, whole, resumed],
        "evaluate": str(data / "val"),
        "weights": str(root / "one" / FINAL),
    }
    return root, torchrun(root, 2, task)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["halves", "quarters"])
def test_two_ranks_with_half_the_batch_train_like_one(runs: tuple[Path, list[Any]], run: str) -> None:
    one, two = (weights(runs[0] / folder / FINAL) for folder in ("one", run))
    new = hardnet.create_model("hardnet39ds", num_classes=3).state_dict()
    assert one.keys() == two.keys() == new.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    (alone,), (together,) = (read_metrics(runs[0] / folder / "metrics.jsonl") for folder in ("one", run))
    for name in ("train_loss", "val_loss", "ema_val_loss"):
        assert together[name] == pytest.approx(alone[name], rel=1e-5)


def test_all_ranks_stop_when_one_is_told_to_and_go_on_as_if_nothing_had_been(runs: tuple[Path, list[Any]]) -> None:
    whole, resumed = (weights(runs[0] / folder / FINAL) for folder in ("whole", "resumed"))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    first, second = (read_metrics(runs[0] / folder / "metrics.jsonl") for folder in ("whole", "resumed"))
    for mine, theirs in zip(first, second, strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-12)


def test_no_image_is_counted_twice_or_dropped_whatever_the_ranks(runs: tuple[Path, list[Any]]) -> None:
    root, counted_by_two = runs
    final = str(root / "one" / FINAL)
    source = FolderSource(root / "data" / "val")
    alone = evaluate(
        hardnet.create_model("hardnet39ds", weights=final).eval(),
        source,
        Preprocessing(32, 32),
        Ranks(0, 1, torch.device("cpu")),
        batch_size=4,
        skip_bad_images=True,
    )
    assert (alone.images, len(alone.bad)) == (31, 2)
    assert alone.top5 == 31  # there are three classes
    assert 0 < alone.top1 < 31
    task = {"stop": None, "train": [], "evaluate": str(root / "data" / "val"), "weights": final}
    for ranks, counted in ((2, counted_by_two), (3, torchrun(root, 3, task))):
        assert sorted(line[:2] for line in counted) == [[rank, ranks] for rank in range(ranks)]
        for _, _, images, top1, top5, bad in counted:
            assert (images, top1, top5) == (alone.images, alone.top1, alone.top5)
            assert sorted(bad) == sorted(alone.bad)


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with connect("cpu") as ranks:
        assert (ranks.rank, ranks.size, ranks.first) == (0, 1, True)
        assert ranks.any([True, False]) == [True, False]
        assert ranks.sum_counts([3, 4]) == [3, 4]
        assert ranks.sum(0.5) == 0.5
        assert ranks.gather_texts(["a"]) == ["a"]
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("device", "complaint"), [("tpu:0", "device"), ("meta", "holds no values"), ("cuda:99", "cannot be used")]
)
def test_a_device_that_is_not_there_is_named(device: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught, connect(device):
        pass
    assert device in str(caught.value)
