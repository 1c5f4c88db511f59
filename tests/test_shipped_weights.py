"""The checkpoint inside the package, on the test images of Fashion-MNIST that come with the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from hardnet import Classifier, create_model, get_weights
from hardnet.weights.download import fetch, find_cached

KEY = ("hardnet39ds", "FASHION_MNIST")
IMAGES = sorted((Path(__file__).parent.parent / "images" / "fashion_mnist").glob("*.png"))


WRONG = {"ankle-boot-00023.png": "Sandal", "dress-00032.png": "Trouser", "t-shirt-top-00027.png": "Shirt"}
"""What the checkpoint takes for something else: the files are the first three of each class, not a choice."""


def as_in_file_names(label: str) -> str:
    return label.lower().replace("/", "-").replace(" ", "-")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDNET_OFFLINE", "1")


def test_the_samples_get_their_labels(device: str) -> None:
    results = Classifier("hardnet39ds", weights="FASHION_MNIST", device=device).predict(IMAGES)
    told = {path.name: result.top.label for path, result in zip(IMAGES, results, strict=True)}
    assert len(told) == 30
    classes = {as_in_file_names(category) for category in get_weights(*KEY).categories}
    assert {name[: -len("-00000.png")] for name in told} == classes
    wrong = {name: label for name, label in told.items() if as_in_file_names(label) != name[: -len("-00000.png")]}
    assert wrong == WRONG


def test_it_is_small_verified_and_needs_no_cache() -> None:
    record = get_weights(*KEY)
    found = fetch(record)
    assert find_cached(record) == found
    assert len(found.content) <= 6_000_000
    assert not list(Path(os.environ["TORCH_HOME"]).rglob("*.pth"))


def test_half_precision_is_loaded_as_single() -> None:
    model = create_model("hardnet39ds", weights="FASHION_MNIST")
    assert model.num_classes == 10
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.weights_record is get_weights(*KEY)


def test_it_can_be_fine_tuned_to_other_classes() -> None:
    model = create_model("hardnet39ds", weights="FASHION_MNIST", num_classes=3, in_chans=1)
    assert model(torch.rand(2, 1, 64, 64)).shape == (2, 3)
