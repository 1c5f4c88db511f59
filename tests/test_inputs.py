"""Inputs of a classifier: files, folders, images, arrays and tensors, their order, and unusable ones among them."""

import io
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import COLOURS, IMAGES, ConstantLogits, MainColour, colour_classifier, plain, small_transform, tops
from PIL import Image, ImageOps
from torch import Tensor

from hardnet import Classifier, ImageError
from hardnet.images.read import load_image
from hardnet.utils import log


def test_a_picture_is_the_same_in_every_form(network: Classifier) -> None:
    path = IMAGES / "coffee_rotated.jpg"
    array = np.array(load_image(path))
    opaque = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    raw = torch.from_numpy(array).permute(2, 0, 1)
    prepared = network.transform(load_image(path))
    calls: list[Tensor] = []
    network.model.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].cpu()))
    forms = [path, str(path), Image.open(path), load_image(path), raw, raw[None], prepared, prepared[None].double()]
    forms += [path.read_bytes(), io.BytesIO(path.read_bytes()), array, array[None], opaque]
    tops = {network.predict(form)[0].top.index for form in forms}
    assert len(calls) == len(forms)
    assert len(tops) == 1
    assert all(torch.equal(tensor, prepared[None]) for tensor in calls)  # to the last bit
    network.predict(ImageOps.exif_transpose(Image.open(path)))  # the caller's own turn is not taken twice
    assert torch.equal(calls[-1], prepared[None])
    network.predict(load_image(path).rotate(90, expand=True))
    assert not torch.allclose(calls[-1], prepared[None], atol=0.5)


def test_mixed_iterables_keep_their_order_and_are_numbered_by_position(folder: Path, device: str) -> None:
    classifier = colour_classifier(device)
    batch = torch.stack([torch.from_numpy(np.array(plain(name))).permute(2, 0, 1) for name in ("blue", "red")])

    def inputs() -> Iterator[object]:
        yield plain("green")
        yield folder / "02.png"
        yield batch
        yield small_transform(plain("red"))
        yield str(folder / "01.png")
        yield plain("blue")

    results = classifier.predict(inputs(), batch_size=3)
    names = ["<image 0>", folder / "02.png", "<tensor 2>", "<tensor 3>", "<tensor 4>", folder / "01.png", "<image 6>"]
    assert [result.source for result in results] == list(map(str, names))
    assert tops(results) == ["green", "blue", "blue", "red", "red", "green", "blue"]


def test_prepared_tensors_may_live_on_the_device_or_carry_gradients(device: str) -> None:
    classifier = colour_classifier(device)
    prepared = small_transform(plain("green")).to(device).requires_grad_()
    raw = torch.from_numpy(np.array(plain("blue"))).permute(2, 0, 1).to(device)
    results = classifier.predict([prepared, raw, plain("red")])
    assert tops(results) == ["green", "blue", "red"]
    expected = prepared.detach().mean((1, 2)).softmax(0)[1].item()
    assert results[0].top.probability == pytest.approx(expected, rel=1e-6)  # used as it is


def test_only_pictures_of_one_size_share_a_batch() -> None:
    classifier = colour_classifier()
    sizes = [(32, 32), (40, 40), (32, 32), (32, 32), (40, 40), (33, 32)]
    results = classifier.predict([torch.zeros(3, *size) for size in sizes], batch_size=4)
    assert [r.source for r in results] == [f"<tensor {n}>" for n in range(6)]
    assert sorted(classifier.model.batches) == [(1, 3, 33, 32), (1, 3, 40, 40), (1, 3, 40, 40), (3, 3, 32, 32)]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(32, 32), r"<tensor 0>: .* model input, \(3, H, W\).*got torch.float32 \(32, 32\)"),
        (torch.zeros(32, 32, 3), r"<tensor 0>: .* model input, \(3, H, W\).*got.*\(32, 32, 3\)"),
        (torch.zeros(3, 0, 32), r"H and W of at least 1, got"),
        (torch.zeros(3, 32, 32, dtype=torch.int64), r"raw values have the type uint8 .* got torch.int64"),
        (torch.zeros(32, 32, 3, dtype=torch.uint8), r"raw values have .* \(3, H, W\) in a tensor.* \(32, 32, 3\)"),
        (torch.zeros(3, 0, 32, dtype=torch.uint8), "<tensor 0>: .*no pixels"),
        (torch.full((3, 32, 32), math.nan), r"<tensor 0>: the tensor has values that are infinite or not a number"),
        (torch.full((1, 3, 32, 32), math.inf), r"<tensor 0>: the tensor has values that are infinite or not a number"),
    ],
)
def test_tensors_that_are_no_pictures(tensor: Tensor, message: str) -> None:
    classifier = colour_classifier()
    with pytest.raises(ImageError, match=message):
        classifier.predict(tensor)
    results = classifier.predict([plain("red"), tensor, plain("blue")])  # collected, and the others go on
    assert all(result.error and not result.predictions for result in results[1:-1])
    assert results[0].top.label == "red"
    assert results[-1].top.label == "blue"


def test_arrays_and_bytes(folder: Path, network: Classifier) -> None:
    grey = np.zeros((40, 40), np.uint8)
    results = network.predict([grey, *np.zeros((2, 40, 40, 3), np.uint8)])
    assert [result.source for result in results] == ["<image 0>", "<image 1>", "<image 2>"]
    for wrong in (grey.astype(np.float32), np.zeros((3, 40, 40), np.uint8)):
        with pytest.raises(ImageError, match="raw values have the type uint8 and the shape"):
            network.predict(wrong)
    with pytest.raises(ImageError, match="<image 0>: is not an image"):
        network.predict(b"cat.jpg")
    with pytest.raises(ImageError, match=r"H and W of at least 32, got torch.float32 \(3, 31, 64\)"):
        network.predict(torch.zeros(3, 31, 64))
    paths = np.array([str(folder / "02.png"), str(folder / "00.png")])
    assert tops(colour_classifier().predict(paths)) == ["blue", "red"]


def test_what_cannot_be_an_image_is_a_type_error() -> None:
    classifier = colour_classifier()
    for wrong in (5, None):
        with pytest.raises(TypeError, match=r"an image is a path, bytes, .* got"):
            classifier.stream(wrong)
        with pytest.raises(TypeError, match="got"):
            classifier.predict([plain(), wrong])
    with pytest.raises(TypeError, match="got list"):
        classifier.predict([[plain()]])


def test_an_unreadable_subfolder_is_a_result_with_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "locked").mkdir()
    original = Path.iterdir

    def iterdir(self: Path) -> object:
        if self.name == "locked":
            raise PermissionError(13, "Permission denied", str(self))  # as for anyone but root
        return original(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    results = colour_classifier().predict(folder)
    assert len(results) == 21
    assert results[-1].error == f"{folder / 'locked'}: cannot be listed: Permission denied"


def test_one_broken_file_of_twenty(folder: Path, device: str, caplog: pytest.LogCaptureFixture) -> None:
    results = colour_classifier(device).predict(folder, batch_size=6)
    broken = results.pop(7)
    assert broken.source == str(folder / "07.png")
    assert broken.predictions == ()
    with pytest.raises(ImageError, match=r"07\.png: cannot be read"):
        _ = broken.top
    assert tops(results) == [list(COLOURS)[number % 3] for number in range(20) if number != 7]
    [message] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "07.png" in message


def test_alone_it_is_raised_and_among_others_collected(folder: Path) -> None:
    classifier = colour_classifier()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "empty").mkdir()
    messages = {"07.png": "cannot be read", "gone.png": "no such", "pipe.jpg": "Not a regular", "empty": "no images"}
    for name, message in messages.items():
        path = folder / name
        with pytest.raises(ImageError, match=f"{name}: .*{message}"):
            classifier.predict(path)
        first, second, third = classifier.predict([plain("red"), path, plain("blue")])
        assert second.source == str(path)
        assert message in str(second.error)
        assert tops([first, third]) == ["red", "blue"]


def test_a_model_whose_output_is_not_a_number(device: str) -> None:
    classifier = Classifier(ConstantLogits(3, math.nan), device=device)
    with pytest.raises(ImageError, match="<tensor 0>: the model's output is infinite or not a number"):
        classifier.predict(torch.zeros(3, 32, 32))
    assert classifier.predict([torch.zeros(3, 32, 32)])[0].predictions == ()


def test_errors_of_the_input_iterable_and_of_the_transform_are_not_hidden() -> None:
    def failing() -> Iterator[Image.Image]:
        yield plain()
        raise RuntimeError("the camera is gone")

    with pytest.raises(RuntimeError, match="the camera is gone"):
        colour_classifier().predict(failing())
    with pytest.raises(ZeroDivisionError):
        Classifier(MainColour(), device="cpu", transform=lambda image: 1 / 0).predict([plain()])


def test_the_same_whatever_the_batch_size(network: Classifier) -> None:
    paths = sorted(IMAGES.glob("*.jpg")) * 2
    single = network.predict(paths, topk=10, batch_size=1)
    for batch_size in (3, 64):
        for one, other in zip(single, network.predict(paths, topk=10, batch_size=batch_size), strict=True):
            assert one.source == other.source
            by_index = {p.index: p.probability for p in one.predictions}
            assert {p.index: p.probability for p in other.predictions} == pytest.approx(by_index, abs=1e-5)
    assert len({result.top.probability for result in single}) >= 4  # the pictures are told apart


def test_raw_values_are_named_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(log, "LOGGED", set())
    list(colour_classifier().stream([torch.randn(3, 32, 32), *(torch.full((3, 32, 32), 255.0) for _ in range(2))]))
    [message] = caplog.messages  # of the first to be decoded
    assert "its values go up to 255" in message


def test_a_forked_process_is_told_to_spawn(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    classifier = colour_classifier()
    classifier.predict(plain())
    assert not caplog.messages
    monkeypatch.setattr(log, "LOGGED", set())
    monkeypatch.setattr(os, "getpid", lambda: 1)  # what the child of a fork would see
    classifier.predict(plain())
    assert len(caplog.messages) == 1
    assert "'spawn'" in caplog.messages[0]
