"""All 10,000 test images of Fashion-MNIST, from Debian's package dataset-fashion-mnist: accuracy, engine by engine."""

import json

import pytest
import torch
from torch import Tensor

from hardnet import Accelerated, HarDNet, accelerate, create_model
from hardnet.cli import main
from hardnet.engines.acceleration import cpu_has_bf16
from hardnet.training.data import open_evaluation

pytestmark = pytest.mark.slow
MOST_LOST = 50  # images of the 10,000: half a point


@pytest.fixture(scope="module")
def model() -> HarDNet:
    return create_model("hardnet39ds", weights="FASHION_MNIST").eval()


def batches(model: HarDNet, split: str, step: int) -> list[Tensor]:
    """Every ``step``-th image of a split as the model takes it, 250 at a time."""
    transform = model.preprocessing
    source = open_evaluation("fashion-mnist", split=split)
    images = [transform(source.load(index)[0]) for index in range(0, len(source), step)]
    return [torch.stack(images[start : start + 250]) for start in range(0, len(images), 250)]


@pytest.fixture(scope="module")
def test_images(model: HarDNet) -> list[Tensor]:
    return batches(model, "test", 1)


@pytest.fixture(scope="module")
def labels() -> Tensor:
    source = open_evaluation("fashion-mnist")
    return torch.tensor([source.load(index)[1] for index in range(len(source))])


@pytest.fixture(scope="module")
def eager(model: HarDNet, test_images: list[Tensor]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(batch).argmax(1) for batch in test_images])


def labels_of(fast: Accelerated, images: list[Tensor]) -> Tensor:
    logits = [fast(batch) for batch in images]
    return torch.cat([each.argmax(1) for each in logits if isinstance(each, Tensor)])


def test_the_shipped_checkpoint_is_as_good_as_its_record_says(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "fashion-mnist", "--model", "hardnet39ds", "--weights", "FASHION_MNIST", "--device", "cpu"]
    assert main([*command, "--expect", "0.011", "--format", "json"]) == 0  # one image more or less
    [row] = json.loads(capsys.readouterr().out)
    assert row["images"] == 10_000


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_no_engine_changes_a_single_label(
    engine: str, model: HarDNet, test_images: list[Tensor], eager: Tensor
) -> None:
    fast = accelerate(model, engine=engine)
    assert int((labels_of(fast, test_images) != eager).sum()) == 0


@pytest.mark.parametrize(("engine", "precision"), [("onnxruntime", "int8"), ("openvino", "int8"), ("torch", "bf16")])
def test_fewer_bits_lose_at_most_half_a_point(
    engine: str, precision: str, model: HarDNet, test_images: list[Tensor], eager: Tensor, labels: Tensor
) -> None:
    if precision == "bf16" and not cpu_has_bf16():
        pytest.skip("this processor does not compute in bf16")
    calibration = batches(model, "train", 200) if precision == "int8" else None
    answers = labels_of(accelerate(model, engine=engine, precision=precision, calibration=calibration), test_images)
    print(engine, precision, int((answers == labels).sum()), "right of", len(labels))
    assert int((answers != eager).sum()) > 0  # it was in fact computed with fewer bits
    assert int((eager == labels).sum() - (answers == labels).sum()) <= MOST_LOST
