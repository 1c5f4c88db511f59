"""The classifier: what comes out, and what it makes of models, labels, transforms and devices."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from pictures import (
    COLOURS,
    IMAGES,
    ConstantLogits,
    MainColour,
    colour_classifier,
    one_torch_thread,
    plain,
    small_network,
    small_transform,
    tops,
)
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

import hardnet.inference
from hardnet import Classifier, HarDNet, ImageResult, Prediction
from hardnet.images.preprocess import Preprocessing
from hardnet.images.read import load_image
from hardnet.models.config import CONFIGS
from hardnet.weights.catalog import CATALOG, read_categories

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture
def network(golden_fill: Callable[[nn.Module], nn.Module], device: str) -> Classifier:
    return small_network(golden_fill, device)


def test_class_list_is_imagenets_in_index_order() -> None:
    lines = (ROOT / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1000
    assert all(line == line.strip() != "" for line in lines)
    assert lines == ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    assert tuple(lines) == read_categories("imagenet_classes.txt") == CATALOG["hardnet68", "IMAGENET1K_V1"].categories


def test_predictions_are_the_models_softmax(golden_fill: Callable[[nn.Module], nn.Module], device: str) -> None:
    path = IMAGES / "cat.jpg"
    network = Classifier(golden_fill(HarDNet(CONFIGS["hardnet39ds"], num_classes=10)), device=device)
    (result,) = network.predict(path, topk=4)
    tensor = Preprocessing()(load_image(path))
    with torch.inference_mode():
        expected = network.model(tensor[None].to(network.device)).softmax(1)[0].cpu()
    values, indices = expected.topk(4)
    assert [p.index for p in result.predictions] == indices.tolist()
    assert [p.probability for p in result.predictions] == pytest.approx(values.tolist(), rel=1e-5)
    assert [p.label for p in result.predictions] == [f"class {index}" for index in indices]
    assert {p.source for p in result.predictions} == {result.source} == {str(path)}
    assert result.error is None
    assert result.top is result.predictions[0]


def test_results_are_plain_frozen_values(device: str) -> None:
    (result,) = colour_classifier(device).predict(plain("blue"))
    assert result == ImageResult("<image 0>", result.predictions)
    assert isinstance(result.top, Prediction)
    assert (type(result.top.index), type(result.top.probability)) == (int, float)
    with pytest.raises(FrozenInstanceError):
        result.source = "other"


def test_as_many_predictions_as_asked_for_or_as_there_are_classes() -> None:
    classifier = colour_classifier()
    for topk, expected in ((1, 1), (3, 3), (100, 3)):
        (result,) = classifier.predict(plain("green"), topk=topk)
        assert len(result.predictions) == expected
        probabilities = [p.probability for p in result.predictions]
        assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)


def test_equal_probabilities_are_in_the_order_of_the_classes() -> None:
    classifier = Classifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), ConstantLogits(50)), device="cpu")
    (result,) = classifier.predict(torch.zeros(3, 8, 8), topk=50)
    assert [p.index for p in result.predictions] == list(range(50))


def test_the_same_whatever_the_batch_size(network: Classifier) -> None:
    paths = sorted(IMAGES.glob("*.jpg")) * 2
    single = network.predict(paths, topk=10, batch_size=1)
    for batch_size in (3, 64):
        for one, other in zip(single, network.predict(paths, topk=10, batch_size=batch_size), strict=True):
            assert one.source == other.source
            by_index = {p.index: p.probability for p in one.predictions}
            assert {p.index: p.probability for p in other.predictions} == pytest.approx(by_index, abs=1e-5)
    assert len({result.top.probability for result in single}) >= 4  # the pictures are told apart


def log_and_labels(classes: int, caplog: pytest.LogCaptureFixture, **options: object) -> tuple[str, ...]:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="hardnet"):
        classifier = Classifier(ConstantLogits(classes), device="cpu", **options)
        classifier.predict(torch.zeros(3, 32, 32))
    assert classifier.labels is not None
    return classifier.labels


def test_labels_by_default(caplog: pytest.LogCaptureFixture) -> None:
    assert log_and_labels(4, caplog) == ("class 0", "class 1", "class 2", "class 3")
    assert caplog.text == ""
    assert log_and_labels(1000, caplog) == read_categories("imagenet_classes.txt")
    assert "no labels were given" in caplog.text
    assert HarDNet(CONFIGS["hardnet39ds"], num_classes=7).num_classes == 7
    assert Classifier(HarDNet(CONFIGS["hardnet39ds"], num_classes=7), device="cpu").labels == tuple(
        f"class {index}" for index in range(7)
    )


def test_labels_of_the_record_unless_the_head_is_another(caplog: pytest.LogCaptureFixture) -> None:
    record = CATALOG["hardnet39ds", "IMAGENET1K_V1"]
    with caplog.at_level(logging.INFO, logger="hardnet"):
        for classes, first in ((1000, "tench"), (12, "class 0")):
            model = HarDNet(CONFIGS["hardnet39ds"], num_classes=classes)
            model.weights_record = record
            labels = Classifier(model, device="cpu").labels
            assert labels is not None
            assert labels[0] == first
    assert caplog.text == ""  # nothing was guessed


def test_labels_of_the_caller_come_first(tmp_path: Path) -> None:
    model = HarDNet(CONFIGS["hardnet39ds"], num_classes=2)
    assert Classifier(model, device="cpu", labels=["cat", "dog"]).labels == ("cat", "dog")
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffKätzchen\r\nHund\r\n".encode())
    for given in (path, str(path)):
        assert Classifier(model, device="cpu", labels=given).labels == ("Kätzchen", "Hund")


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    model = HarDNet(CONFIGS["hardnet39ds"], num_classes=2)
    with pytest.raises(ValueError, match="there are 3 labels, but the model tells 2 classes apart"):
        Classifier(model, device="cpu", labels=["a", "b", "c"])
    classifier = Classifier(MainColour(), device="cpu", labels=["a"])  # this model does not say how many it has
    with pytest.raises(ValueError, match="there are 1 labels, but the model tells 3 classes apart"):
        classifier.predict(plain())
    (tmp_path / "labels.txt").write_text("a\n\nb\n")
    with pytest.raises(ValueError, match="the label of class 1 is blank"):
        Classifier(model, device="cpu", labels=tmp_path / "labels.txt")
    with pytest.raises(ValueError, match=r"the labels cannot be read from .*gone.txt"):
        Classifier(model, device="cpu", labels=tmp_path / "gone.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\nb\n")
    with pytest.raises(ValueError, match=r"the labels cannot be read from .*latin.txt"):
        Classifier(model, device="cpu", labels=tmp_path / "latin.txt")
    with pytest.raises(TypeError, match="labels are names, got 7 for class 1"):
        Classifier(model, device="cpu", labels=["a", 7])


def test_the_transform_is_the_records_the_callers_or_imagenets() -> None:
    model = HarDNet(CONFIGS["hardnet39ds"])
    assert Classifier(model, device="cpu").transform == Preprocessing()
    model.weights_record = CATALOG["hardnet39ds", "IMAGENET1K_V1"]
    assert Classifier(model, device="cpu").transform == model.weights_record.transforms()
    assert Classifier(model, device="cpu", transform=small_transform).transform is small_transform


def test_a_transform_that_does_not_fit() -> None:
    for transform, message in (
        (lambda image: image, r"must give a float tensor \(3, H, W\), it gave Image"),
        (lambda image: torch.zeros(1, 3, 32, 32), r"it gave torch.float32 \(1, 3, 32, 32\)"),
        (lambda image: torch.zeros(3, 32, 32, dtype=torch.uint8), r"it gave torch.uint8 \(3, 32, 32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Classifier(MainColour(), device="cpu", transform=transform).predict([plain()])


def test_a_model_of_other_channels(device: str) -> None:
    model = HarDNet(CONFIGS["hardnet39ds"], num_classes=3, in_chans=1)
    with pytest.raises(
        ValueError, match=r"the model takes 1 channels, the transform gave torch.float32 \(3, 224, 224\)"
    ):
        Classifier(model, device=device).predict([plain()])
    grey = Classifier(model, device=device, transform=lambda image: small_transform(image)[:1])
    assert len(grey.predict([plain(), torch.zeros(1, 64, 64)])) == 2
    assert "shape (1, H, W)" in str(grey.predict([torch.zeros(3, 64, 64)])[0].error)


def test_the_module_itself_is_used_in_evaluation_mode(device: str) -> None:
    model = MainColour()
    assert model.training
    classifier = Classifier(model, device=device)
    assert classifier.model is model
    assert not model.training
    assert model.scale.device.type == device
    assert classifier.device == model.scale.device or classifier.device.type == device


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_precision(dtype: torch.dtype, device: str) -> None:
    model = MainColour().to(dtype)
    classifier = Classifier(model, device=device, labels=list(COLOURS), transform=small_transform)
    results = classifier.predict([plain("green"), torch.eye(3)[2].view(3, 1, 1).expand(3, 32, 32)])
    assert tops(results) == ["green", "blue"]
    assert set(model.dtypes) == {dtype}
    expected = torch.tensor([0.0, 0.0, 1.0]).softmax(0)[2].item()
    assert results[1].top.probability == pytest.approx(expected, rel=1e-6)  # the softmax itself is not taken in half


@pytest.mark.parametrize("output", [lambda x: x, lambda x: (x.mean((2, 3)),), lambda x: x.mean((0, 2, 3))])
def test_models_that_give_no_logits(output: Callable[[Tensor], object]) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> object:
            return output(x)

    with pytest.raises(ValueError, match=r"the model must give logits of shape \(1, classes\), it gave"):
        Classifier(Odd(), device="cpu").predict(torch.zeros(3, 32, 32))


def test_devices() -> None:
    auto = Classifier(MainColour())
    assert auto.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert Classifier(MainColour(), device=torch.device("cpu")).device == torch.device("cpu")
    for wrong in ("gpu", "cuda:99", "meta", ""):
        model = MainColour()
        with pytest.raises(ValueError, match=f"the device '{wrong}'"):
            Classifier(model, device=wrong)
        assert model.training  # left alone


def test_a_name_takes_the_authors_weights_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def create_model(name: str, *, weights: object) -> nn.Module:
        asked.append((name, weights))
        return MainColour()

    monkeypatch.setattr(hardnet.inference, "create_model", create_model)
    Classifier("hardnet68", device="cpu")
    Classifier("hardnet85", weights=tmp_path / "own.pth", device="cpu")
    assert asked == [("hardnet68", "IMAGENET1K_V1"), ("hardnet85", tmp_path / "own.pth")]


def test_a_name_with_a_local_file(tmp_path: Path, golden_fill: Callable[[nn.Module], nn.Module]) -> None:
    model = golden_fill(HarDNet(CONFIGS["hardnet39ds"], num_classes=5))
    torch.save(model.state_dict(), tmp_path / "own.pth")
    classifier = Classifier("hardnet39ds", weights=tmp_path / "own.pth", device="cpu", transform=small_transform)
    mine = classifier.predict(IMAGES / "cat.jpg")
    assert mine == Classifier(model, device="cpu", transform=small_transform).predict(IMAGES / "cat.jpg")
    assert len(mine[0].predictions) == 5


def test_wrong_models() -> None:
    with pytest.raises(ValueError, match="hardnet68"):
        Classifier("hardnet86", device="cpu")
    with pytest.raises(ValueError, match="weights= goes with the name of a model"):
        Classifier(MainColour(), weights="IMAGENET1K_V1")
    with pytest.raises(TypeError, match=r"expected the name of a model or a torch.nn.Module, got type"):
        Classifier(MainColour)
    with pytest.raises(TypeError):
        Classifier(MainColour(), topk=3)
