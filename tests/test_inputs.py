"""What may be handed to the classifier, and what becomes of what is unusable."""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import (
    COLOURS,
    IMAGES,
    ConstantLogits,
    MainColour,
    colour_classifier,
    fill_folder,
    one_torch_thread,
    plain,
    small_network,
    small_transform,
    tops,
)
from PIL import Image, ImageOps
from torch import Tensor, nn

from hardnet import Classifier, ImageError
from hardnet.images.read import load_image


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture
def network(golden_fill: Callable[[nn.Module], nn.Module], device: str) -> Classifier:
    return small_network(golden_fill, device)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill_folder(tmp_path)


def test_a_picture_is_the_same_as_file_image_and_raw_tensor(network: Classifier) -> None:
    path = IMAGES / "coffee_rotated.jpg"
    raw = torch.from_numpy(np.array(load_image(path))).permute(2, 0, 1)
    assert raw.dtype == torch.uint8
    prepared = network.transform(load_image(path))
    seen: list[Tensor] = []
    network.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].cpu()))
    forms = [path, str(path), Image.open(path), load_image(path), raw, raw[None], prepared, prepared[None].double()]
    tops = {network.predict(form)[0].top.index for form in forms}
    assert len(seen) == len(forms)
    assert len(tops) == 1
    assert all(torch.equal(tensor, prepared[None]) for tensor in seen)  # to the last bit
    network.predict(ImageOps.exif_transpose(Image.open(path)))  # the caller's own turn is not taken twice
    assert torch.equal(seen[-1], prepared[None])
    network.predict(load_image(path).rotate(90, expand=True))
    assert not torch.allclose(seen[-1], prepared[None], atol=0.5)


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
    assert [result.source for result in results] == [
        "<image 0>",
        str(folder / "02.png"),
        "<tensor 2>",
        "<tensor 3>",
        "<tensor 4>",
        str(folder / "01.png"),
        "<image 6>",
    ]
    assert tops(results) == ["green", "blue", "blue", "red", "red", "green", "blue"]


def test_folders_within_an_iterable(folder: Path) -> None:
    results = colour_classifier().predict([plain("red"), folder, plain("blue")])
    assert len(results) == 22
    assert results[-1].source == "<image 21>"
    assert [r.source for r in results[1:-1]] == [str(folder / f"{number:02}.png") for number in range(20)]


def test_paths_are_given_back_as_they_came(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    given = ["00.png", "./01.png", f"../{folder.name}//02.png"]
    results = colour_classifier().predict(given)
    assert [r.source for r in results] == given
    assert colour_classifier().predict(".")[3].source == "03.png"


def test_prepared_tensors_are_used_as_they_are(device: str) -> None:
    classifier = colour_classifier(device)
    tensor = torch.full((2, 3, 17, 33), -1.0)
    tensor[0, 1], tensor[1, 2] = 5.0, 7.0
    results = classifier.predict(tensor)
    assert tops(results) == ["green", "blue"]
    expected = torch.tensor([-1.0, 5.0, -1.0]).softmax(0)[1].item()
    assert results[0].top.probability == pytest.approx(expected, rel=1e-6)
    assert classifier.model.batches == [(2, 3, 17, 33)]


def test_tensors_may_live_on_the_device_or_carry_gradients(device: str) -> None:
    classifier = colour_classifier(device)
    prepared = small_transform(plain("green")).to(device).requires_grad_()
    raw = torch.from_numpy(np.array(plain("blue"))).permute(2, 0, 1).to(device)
    assert tops(classifier.predict([prepared, raw, plain("red")])) == ["green", "blue", "red"]


def test_only_pictures_of_one_size_share_a_batch() -> None:
    classifier = colour_classifier()
    sizes = [(32, 32), (40, 40), (32, 32), (32, 32), (40, 40), (33, 32)]
    results = classifier.predict([torch.zeros(3, *size) for size in sizes], batch_size=4)
    assert [r.source for r in results] == [f"<tensor {n}>" for n in range(6)]
    batches = classifier.model.batches
    assert sorted(batches) == [(1, 3, 33, 32), (1, 3, 40, 40), (1, 3, 40, 40), (3, 3, 32, 32)]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(32, 32), r"shape \(3, H, W\) or \(N, 3, H, W\), got torch.float32 \(32, 32\)"),
        (torch.zeros(1, 1, 3, 32, 32), r"got torch.float32 \(1, 1, 3, 32, 32\)"),
        (torch.zeros(1, 32, 32), r"<tensor 0>: the tensor must have the shape \(3, H, W\).*got.*\(1, 32, 32\)"),
        (torch.zeros(32, 32, 3), r"the channels are last, move them to the front"),
        (torch.zeros(2, 32, 32, 3, dtype=torch.uint8), r"the channels are last, move them to the front"),
        (torch.zeros(4, 32, 32, dtype=torch.uint8), r"the tensor must have the shape \(3, H, W\)"),
        (torch.zeros(3, 0, 32), r"H and W of at least 1, got"),
        (torch.zeros(3, 32, 0, dtype=torch.uint8), r"H and W of at least 1, got"),
        (
            torch.zeros(3, 32, 32, dtype=torch.int64),
            r"raw values in uint8 or prepared ones in floating point, got torch",
        ),
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


def test_a_tensor_too_small_for_the_network(network: Classifier) -> None:
    with pytest.raises(ImageError, match=r"\(3, H, W\) with H and W of at least 32, got torch.float32 \(3, 31, 64\)"):
        network.predict(torch.zeros(3, 31, 64))
    results = network.predict([torch.zeros(3, 31, 64), torch.zeros(3, 32, 64)])
    assert [r.error is None for r in results] == [False, True]


def test_what_cannot_be_an_image_is_a_type_error() -> None:
    classifier = colour_classifier()
    for wrong, advice in (
        (np.zeros((32, 32, 3), np.uint8), "got ndarray: turn arrays into images with PIL.Image.fromarray"),
        (io.BytesIO(b""), "got BytesIO: read files that are already open with hardnet.images.load_image"),
        (b"cat.jpg", "got bytes"),
        (5, "got int"),
        (None, "got NoneType"),
    ):
        with pytest.raises(TypeError, match=advice):
            classifier.stream(wrong)
        with pytest.raises(TypeError, match=advice):
            classifier.predict([plain(), wrong])
    with pytest.raises(TypeError, match="got list"):
        classifier.predict([[plain()]])


def test_arrays_of_paths_are_iterables(folder: Path) -> None:
    results = colour_classifier().predict(np.array([str(folder / "02.png"), str(folder / "00.png")]))
    assert tops(results) == ["blue", "red"]


def test_nothing_in_nothing_out() -> None:
    assert colour_classifier().predict([]) == []
    assert colour_classifier().predict(torch.zeros(0, 3, 32, 32)) == []


def test_one_broken_file_of_twenty(folder: Path, device: str, caplog: pytest.LogCaptureFixture) -> None:
    results = colour_classifier(device).predict(folder, batch_size=6)
    assert len(results) == 20
    broken = [result for result in results if result.error is not None]
    assert [result.source for result in broken] == [str(folder / "07.png")]
    assert str(folder / "07.png") in str(broken[0].error)
    assert broken[0].predictions == ()
    with pytest.raises(ImageError, match=r"07\.png: cannot be read"):
        _ = broken[0].top
    for number, result in enumerate(results):
        if number != 7:
            assert result.top.label == list(COLOURS)[number % 3]
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "07.png" in warnings[0].getMessage()


def test_alone_it_is_raised_and_among_others_collected(folder: Path) -> None:
    classifier = colour_classifier()
    os.mkfifo(folder / "pipe.jpg")
    for name, message in (("07.png", "cannot be read"), ("gone.png", "no such file"), ("pipe.jpg", "is a FIFO")):
        path = folder / name
        with pytest.raises(ImageError, match=f"{name}: .*{message}"):
            classifier.predict(path)
        first, second, third = classifier.predict([plain("red"), path, plain("blue")])
        assert second.source == str(path)
        assert message in str(second.error)
        assert tops([first, third]) == ["red", "blue"]
    with pytest.raises(ImageError, match="is an address, not a file: download it first"):
        classifier.predict("https://example.org/cat.jpg")


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ImageError, match="no images in this folder"):
        colour_classifier().predict(tmp_path)
    results = colour_classifier().predict([plain("red"), tmp_path])
    assert results[1].source == str(tmp_path)
    assert "no images in this folder" in str(results[1].error)


def test_a_truncated_image_that_was_only_opened(folder: Path) -> None:
    with pytest.raises(ImageError, match="<image 0>: cannot be read"):
        colour_classifier().predict(Image.open(folder / "07.png"))


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

    def transform(image: Image.Image) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Classifier(MainColour(), device="cpu", transform=transform).predict([plain()])


@pytest.mark.parametrize("value", [0, -1, 2.5, True, None, "5"])
def test_numbers_are_checked_at_the_call(value: object) -> None:
    for option in ("topk", "batch_size"):
        with pytest.raises(ValueError, match=f"{option} must be a whole number from 1 up, got {value!r}"):
            colour_classifier().stream(plain(), **{option: value})
