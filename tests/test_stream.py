"""Streams: lazy, bounded, decoding ahead, and nothing left behind."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from pictures import (
    IMAGES,
    MainColour,
    colour_classifier,
    fill_folder,
    one_torch_thread,
    plain,
    small_network,
    small_transform,
)
from PIL import Image
from torch import Tensor, nn

from hardnet import Classifier
from hardnet.images.inputs import WORKERS


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


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hardnet-decode")]


def test_a_stream_is_lazy_and_bounded() -> None:
    taken = 0

    def endless() -> Iterator[Image.Image]:
        nonlocal taken
        while True:
            taken += 1
            yield plain("green")

    batch_size = 4
    ahead = batch_size + max(batch_size, WORKERS)
    stream = colour_classifier().stream(endless(), batch_size=batch_size)
    assert taken == 0
    for given in range(1, 200):
        assert next(stream).top.label == "green"
        assert taken <= given + ahead
    stream.close()
    assert taken <= 199 + ahead
    assert decoding_threads() == []


def test_decoding_goes_on_while_the_model_runs() -> None:
    decoded = []
    enough = threading.Event()

    def transform(image: Image.Image) -> Tensor:
        decoded.append(1)
        if len(decoded) > 2:
            enough.set()
        return small_transform(image)

    class Waiting(MainColour):
        waited = True

        def forward(self, x: Tensor) -> Tensor:
            self.waited = self.waited and enough.wait(timeout=30)
            return super().forward(x)

    model = Waiting()
    results = Classifier(model, device="cpu", transform=transform).predict((plain() for _ in range(6)), batch_size=2)
    assert len(results) == 6
    assert model.waited  # the third picture was decoded although the first two were not classified yet


def test_no_threads_are_left_behind(folder: Path) -> None:
    classifier = colour_classifier()
    assert len(classifier.predict(folder)) == 20
    assert decoding_threads() == []
    stream = classifier.stream(folder, batch_size=2)
    next(stream)
    assert decoding_threads()
    stream.close()
    assert decoding_threads() == []
    stream = classifier.stream([plain(), 5], batch_size=1)
    with pytest.raises(TypeError):
        list(stream)
    assert decoding_threads() == []
    classifier.stream(folder)  # never begun
    assert decoding_threads() == []


def test_closing_drops_what_has_not_begun() -> None:
    begun = []

    def slow_later(image: Image.Image) -> Tensor:
        begun.append(1)
        if len(begun) > 64:  # the first batch is fast
            time.sleep(0.1)
        return small_transform(image)

    classifier = Classifier(MainColour(), device="cpu", transform=slow_later)
    stream = classifier.stream((plain() for _ in range(1000)), batch_size=64)
    next(stream)
    stream.close()
    assert 64 <= len(begun) < 128  # 64 more were waiting for their turn


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


def test_gradients_are_neither_needed_nor_left_off() -> None:
    classifier = colour_classifier()
    stream = classifier.stream([plain(), plain()], batch_size=1)
    next(stream)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert len(list(stream)) == 1
    assert classifier.model.inference_modes == [True, True]
