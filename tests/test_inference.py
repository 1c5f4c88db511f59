"""Classifier and Extractor: predictions, labels, transforms, devices, streaming, embeddings."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from pictures import COLOURS, IMAGES, ConstantLogits, MainColour, colour_classifier, plain, small_transform, tops
from PIL import Image
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

from hardnet import Classifier, HarDNet
from hardnet.images.batches import WORKERS
from hardnet.images.preprocess import Preprocessing
from hardnet.images.read import load_image
from hardnet.inference.classifier import Extractor
from hardnet.inference.results import data_frame
from hardnet.models.config import CONFIGS
from hardnet.utils.devices import usable_device
from hardnet.weights.catalog import CATALOG, read_categories


@pytest.mark.parametrize("value", [0, -1, 2.5, True, None, "5"])
def test_numbers_are_checked_at_the_call(value: object) -> None:
    for option in ("topk", "batch_size"):
        with pytest.raises(ValueError, match=f"{option} must be an integer >= 1, got {value!r}"):
            colour_classifier().stream(plain(), **{option: value})


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hardnet-decode")]


def test_a_stream_is_lazy_and_bounded_and_leaves_no_threads_behind() -> None:
    count = 0

    def endless() -> Iterator[Image.Image]:
        nonlocal count
        while True:
            count += 1
            yield plain("green")

    classifier, batch_size = colour_classifier(), 4
    ahead = batch_size + max(batch_size, WORKERS)
    stream = classifier.stream(endless(), batch_size=batch_size)
    assert count == 0
    for number in range(1, 200):
        assert next(stream).top.label == "green"
        assert count <= number + ahead
    assert decoding_threads()
    stream.close()
    assert count <= 199 + ahead
    assert decoding_threads() == []
    with pytest.raises(TypeError):
        list(classifier.stream([plain(), 5], batch_size=1))
    assert decoding_threads() == []
    classifier.predict(plain())
    assert decoding_threads() == []


def test_decoding_goes_on_while_the_model_runs() -> None:
    decoded, waited = [], []
    enough = threading.Event()

    def transform(image: Image.Image) -> Tensor:
        decoded.append(1)
        if len(decoded) > 2:
            enough.set()
        return small_transform(image)

    classifier = Classifier(MainColour(), device="cpu", transform=transform)
    classifier.model.register_forward_pre_hook(lambda *_: waited.append(enough.wait(timeout=30)))
    assert len(classifier.predict((plain() for _ in range(6)), batch_size=2)) == 6
    assert waited == [True] * 3  # the third picture was decoded although the first two were not classified yet


def test_one_classifier_in_eight_threads(network: Classifier) -> None:
    paths = sorted(IMAGES.glob("*.jpg"))
    shared = Image.open(IMAGES / "coffee_rotated.jpg")  # opened only: the threads race to load it
    expected = json.dumps([[p.label for p in r.predictions] for r in network.predict([*paths, paths[3]], topk=3)])
    assert paths[3].name == "coffee_rotated.jpg"

    def work(_: int) -> str:
        results = network.predict([*paths, shared], topk=3, batch_size=2)
        return json.dumps([[p.label for p in r.predictions] for r in results])

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(8))) == {expected}


def test_class_list_is_imagenets_in_index_order() -> None:
    lines = (IMAGES.parent / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
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


def test_results_show_themselves(tmp_path: Path) -> None:
    classifier = colour_classifier()
    plain("green").save(tmp_path / "a&b.png")
    (tmp_path / "c.png").write_bytes(b"")
    fine, broken = results = classifier.predict(tmp_path, topk=2)
    top, second = fine.predictions
    assert fine.to_dict()["predictions"][0] == {"label": "green", "index": 1, "probability": top.probability}
    assert broken.to_dict() == {"source": str(tmp_path / "c.png"), "error": broken.error}
    assert f"green {top.probability:.1%}" in repr(fine)
    assert broken.error in repr(broken)
    assert "src='data:image/png;base64," in fine._repr_html_()
    assert "a&amp;b.png" in fine._repr_html_()
    assert "<img" not in broken._repr_html_()
    assert repr(classifier).startswith("Classifier(MainColour, classes=3, device='cpu', transform=Preprocessing(")
    frame = data_frame(results)
    assert frame["source"].tolist() == [fine.source, fine.source, broken.source]
    assert frame.loc[1, ["rank", "label", "probability"]].tolist() == [2, second.label, second.probability]
    assert frame["index"].dtype == "Int64"
    assert frame["error"].isna().tolist() == [True, True, False]
    assert data_frame([]).empty


def test_labels_are_the_callers_or_the_models(tmp_path: Path) -> None:
    """The number of classes tells nothing about their names."""
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffKätzchen\r\nHund\r\n".encode())
    model = HarDNet(CONFIGS["hardnet39ds"], num_classes=2)
    model.categories = ("cat", "dog")
    german = ("Kätzchen", "Hund")
    for labels, expected in ((None, ("cat", "dog")), (["a", "b"], ("a", "b")), (path, german), (str(path), german)):
        assert Classifier(model, device="cpu", labels=labels).labels == expected
    for classes in (4, 1000):
        classifier = Classifier(ConstantLogits(classes), device="cpu")
        classifier.predict(torch.zeros(3, 32, 32))
        assert classifier.labels == tuple(f"class {index}" for index in range(classes))


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    model = HarDNet(CONFIGS["hardnet39ds"], num_classes=2)
    with pytest.raises(ValueError, match="there are 3 labels, but the model has 2 classes"):
        Classifier(model, device="cpu", labels=["a", "b", "c"])
    classifier = Classifier(MainColour(), device="cpu", labels=["a"])  # this model does not say how many it has
    with pytest.raises(ValueError, match="there are 1 labels, but the model has 3 classes"):
        classifier.predict(plain())
    (tmp_path / "labels.txt").write_text("a\n\nb\n")
    for labels, message in (
        (tmp_path / "labels.txt", "labels must be a list of names, got '' for class 1"),
        (tmp_path / "gone.txt", r"the labels cannot be read from .*gone.txt"),
        (["a", 7], "labels must be a list of names, got 7 for class 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Classifier(model, device="cpu", labels=labels)


def test_a_transform_that_does_not_fit(device: str) -> None:
    for transform, message in (
        (lambda image: image, r"must return a float tensor \(3, H, W\), got Image"),
        (lambda image: torch.zeros(1, 3, 32, 32), r"got torch.float32 \(1, 3, 32, 32\)"),
        (lambda image: torch.zeros(3, 32, 32, dtype=torch.uint8), r"got torch.uint8 \(3, 32, 32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Classifier(MainColour(), device="cpu", transform=transform).predict([plain()])
    model = HarDNet(CONFIGS["hardnet39ds"], num_classes=3, in_chans=1)
    with pytest.raises(ValueError, match=r"the model takes 1 channels: .* got torch.uint8 \(3, 224, 224\)"):
        Classifier(model, device=device).predict([plain()])
    grey = Classifier(model, device=device, transform=lambda image: small_transform(image)[:1])
    assert len(grey.predict([plain(), torch.zeros(1, 64, 64)])) == 2
    assert "model input, (1, H, W)" in str(grey.predict([torch.zeros(3, 64, 64)])[0].error)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_precision(dtype: torch.dtype, device: str) -> None:
    model = MainColour().to(dtype)
    classifier = Classifier(model, device=device, labels=list(COLOURS), transform=small_transform)
    results = classifier.predict([plain("green"), torch.eye(3)[2].view(3, 1, 1).expand(3, 32, 32)])
    assert tops(results) == ["green", "blue"]
    assert set(classifier.model.dtypes) == {dtype}
    expected = torch.tensor([0.0, 0.0, 1.0]).softmax(0)[2].item()
    assert results[1].top.probability == pytest.approx(expected, rel=1e-6)  # the softmax itself is not taken in half


@pytest.mark.parametrize("output", [lambda x: x, lambda x: (x.mean((2, 3)),), lambda x: x.mean((0, 2, 3))])
def test_models_that_give_no_logits(output: Callable[[Tensor], object]) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> object:
            return output(x)

    with pytest.raises(ValueError, match=r"the model must return a tensor of shape \(1, classes\), got"):
        Classifier(Odd(), device="cpu").predict(torch.zeros(3, 32, 32))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Classifier(MainColour(), device=torch.device("cpu")).device == torch.device("cpu")
    for wrong in ("gpu", "cuda:99", "77", ""):
        with pytest.raises(ValueError, match=f"the device '.*{wrong}'"):
            Classifier(MainColour(), device=wrong)
    for cuda, mps, kind in ((False, False, "cpu"), (False, True, "mps"), (True, True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert usable_device("auto").type == kind


def test_wrong_models() -> None:
    with pytest.raises(ValueError, match="hardnet68"):
        Classifier("hardnet86", device="cpu")
    with pytest.raises(ValueError, match="weights= goes with the name of a model"):
        Classifier(MainColour(), weights="IMAGENET1K_V1")
    with pytest.raises(TypeError, match=r"expected the name of a model, weights or a Module, got type"):
        Classifier(MainColour)
    with pytest.raises(TypeError):
        Classifier(MainColour(), topk=3)


@pytest.fixture
def model(golden_fill: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return golden_fill(HarDNet(CONFIGS["hardnet39ds"], num_classes=3))


def test_embeddings_are_the_pooled_features(model: HarDNet, device: str) -> None:
    extractor = Extractor(model, device=device, transform=small_transform)
    assert extractor.num_features == 1024
    assert model.training  # the caller's model keeps its mode
    model.eval().to(device)
    images = [plain("red"), plain("green"), plain("blue")]
    batch = torch.stack([small_transform(image) for image in images]).to(device)
    with torch.inference_mode():
        expected = model.forward_features(batch).mean((2, 3)).cpu()
    for batch_size in (1, 2, 3):
        results = list(extractor.stream(images, batch_size))
        assert [result.source for result in results] == ["<image 0>", "<image 1>", "<image 2>"]
        torch.testing.assert_close(torch.stack([r.vector for r in results]), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], rtol=1e-2, atol=1e-2)
    results = Extractor(model, device="cpu", transform=small_transform, engine="torch").stream(images)
    torch.testing.assert_close(torch.stack([r.vector for r in results]), expected, rtol=1e-4, atol=1e-4)
    assert model.num_classes  # the caller's model keeps its classifier


def test_the_extractor_takes_pictures_and_networks_that_give_numbers(model: HarDNet) -> None:
    with pytest.raises(TypeError, match="name of a model, weights or a HarDNet, got Linear"):
        Extractor(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got 0"):
        Extractor(model, device="cpu").stream(plain(), 0)
    model.to("cpu").base[0].conv.weight.data.fill_(float("nan"))
    one, two = Extractor(model, device="cpu", transform=small_transform).stream([plain(), b"no picture"])
    assert one.vector is two.vector is None
    assert "infinite or not a number" in one.error
    assert "is not an image" in two.error
