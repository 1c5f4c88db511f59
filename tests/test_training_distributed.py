"""The ranks of torchrun on CPU: the same training as one process, the same counts, stops that all agree on."""

import json
import os
import socket
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
from hardnet.training.checkpoint import FINAL
from hardnet.training.data import open_folder
from hardnet.training.metrics import read_metrics
from hardnet.utils.distributed import Ranks, connect

PROGRAM = """
import json, os, sys, torch
from pathlib import Path
import hardnet, hardnet.training.loop
from hardnet.images.preprocess import Preprocessing
from hardnet.training import TrainOptions, evaluate, train
from hardnet.training.data import open_folder
from hardnet.utils.distributed import connect
from hardnet.training.loop import Trainer
from hardnet.training.signals import StopRequest

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
hardnet.training.loop.draw_curves = lambda folder: None  # takes longer than the run
folder, size, task = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
if "RANK" not in os.environ:  # not torchrun: fork the ranks, which is quicker
    os.environ.update(WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[4])
    for rank in range(size):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        if os.fork() == 0:
            break
    else:
        sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(size)))
with connect("cpu") as ranks:
    if task.get("stop"):
        assert not Trainer(TrainOptions(**task["stop"]), ranks, StopSecondRank()).run().finished
    for wanted in task.get("train", []):
        assert train(TrainOptions(**wanted)).finished
    if "evaluate" in task:
        model = hardnet.create_model("hardnet39ds", weights=task["weights"]).eval()
        source = open_folder(Path(task["evaluate"]))
        result = evaluate(model, source, Preprocessing(32, 32), ranks, batch_size=4, skip_bad_images=True)
        counted = [ranks.rank, ranks.size, result.images, result.top1, result.top5, result.bad]
        # Not printed: the lines of several ranks run into one another.
        (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(counted))
"""
SAME: dict[str, Any] = {
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


def run_ranks(folder: Path, ranks: int, task: dict[str, Any], *launcher: str) -> list[Any]:
    """Run the program on some ranks and return what each of them counted."""
    (folder / "program.py").write_text(PROGRAM)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, *launcher, folder / "program.py", folder, ranks, json.dumps(task), port]
    environment = {**os.environ, "PYTHONPATH": str(Path(hardnet.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    subprocess.run(list(map(str, command)), env=environment, check=True, timeout=300)
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]


def plain(settings: TrainOptions) -> dict[str, Any]:
    return {name: value for name, value in vars(settings).items() if value is not None}


def weights(path: Path) -> dict[str, Tensor]:
    model: dict[str, Tensor] = torch.load(path, weights_only=True)["model"]
    return model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data, and a run of one rank."""
    root = tmp_path_factory.mktemp("runs")
    make_folder(root / "data")
    make_folder(root / "data", images=11, split="val")  # 33 images; two of them broken leave 31, a prime number
    for broken in ("class_0/3.png", "class_2/10.png"):
        (root / "data" / "val" / broken).write_bytes(b"not an image")
    train(options(root / "data", root / "one", batch_size=8, **SAME))
    return root


@pytest.mark.slow
def test_two_ranks_with_half_the_batch_train_like_one(root: Path) -> None:
    """Started by torchrun."""
    changes = {"halves": {"batch_size": 4}, "quarters": {"batch_size": 2, "accumulate": 2}}
    task = {"train": [plain(options(root / "data", root / run, **SAME | changes[run])) for run in changes]}
    run_ranks(root, 2, task, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for run in changes:
        one, two = (weights(root / folder / FINAL) for folder in ("one", run))
        new = hardnet.create_model("hardnet39ds", num_classes=3).state_dict()
        assert one.keys() == two.keys() == new.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
        (alone,), (together,) = (read_metrics(root / folder / "metrics.jsonl") for folder in ("one", run))
        for name in ("train_loss", "val_loss", "ema_val_loss"):
            assert together[name] == pytest.approx(alone[name], rel=1e-5)


def test_ranks_stop_together_resume_exactly_and_count_every_image_once(root: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"batch_size": 4, "ema": 0.9, "drop_rate": 0.2, "mixup": 0.2}
    changes["skip_bad_images"] = True
    whole = plain(options(root / "data", tmp_path / "whole", **changes))
    resumed = plain(options(root / "data", tmp_path / "resumed", resume="auto", **changes))
    final, validation = str(root / "one" / FINAL), root / "data" / "val"
    counting = {"evaluate": str(validation), "weights": final}
    two = run_ranks(tmp_path, 2, {"stop": resumed, "train": [whole, resumed], **counting})
    three = run_ranks(tmp_path, 3, counting)
    first, second = (weights(tmp_path / folder / FINAL) for folder in ("whole", "resumed"))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    pair = (read_metrics(tmp_path / folder / "metrics.jsonl") for folder in ("whole", "resumed"))
    for numbers, expected in zip(*pair, strict=True):
        assert numbers["train_loss"] == expected["train_loss"]
    model, one_rank = hardnet.create_model("hardnet39ds", weights=final).eval(), Ranks(0, 1, torch.device("cpu"))
    source = open_folder(validation)
    alone = evaluate(model, source, Preprocessing(32, 32), one_rank, batch_size=4, skip_bad_images=True)
    assert (alone.images, len(alone.bad)) == (31, 2)
    assert alone.top5 == 31  # there are three classes
    assert 0 < alone.top1 < 31
    for ranks, counted in ((2, two), (3, three)):
        assert [line[:2] for line in counted] == [[rank, ranks] for rank in range(ranks)]
        for _, _, images, top1, top5, bad in counted:
            assert (images, top1, top5) == (alone.images, alone.top1, alone.top5)
            assert sorted(bad) == sorted(alone.bad)


@pytest.mark.parametrize(
    ("device", "complaint"), [("tpu:0", "device"), ("meta", "must be cpu or cuda"), ("cuda:99", "cannot be used")]
)
def test_a_device_that_is_not_there_is_named(device: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught, connect(device):
        pass
    assert device in str(caught.value)
