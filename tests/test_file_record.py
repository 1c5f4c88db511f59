"""What a trained model's file says of itself: believed where it makes sense, refused where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hardnet import Classifier, WeightsError, create_model
from hardnet.images.preprocess import Preprocessing
from hardnet.weights.catalog import WeightsRecord

CLASSES = ["cat", "dog"]
TOLD = {"resize": 40, "crop": 32, "mean": [0.1, 0.2, 0.3], "std": [1, 0.5, 0.25]}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return create_model("hardnet39ds", num_classes=2).state_dict()


def save(path: Path, state: dict[str, torch.Tensor], **entries: object) -> Path:
    torch.save({"model": state, "classes": CLASSES, "preprocessing": TOLD} | entries, path)
    return path


def test_classes_and_preprocessing_are_the_files(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = save(tmp_path / "model.pt", state)
    classifier = Classifier("hardnet39ds", weights=path, device="cpu")
    assert classifier.labels == ("cat", "dog")
    record = classifier.model.weights_record
    assert isinstance(record, WeightsRecord)
    assert record.preprocessing == Preprocessing(40, 32, (0.1, 0.2, 0.3), (1.0, 0.5, 0.25))
    assert classifier.transform == record.transforms()
    assert (record.num_classes, str(record)) == (2, str(path))


def test_another_head_has_no_names(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = save(tmp_path / "model.pt", state)
    model = create_model("hardnet39ds", weights=path, num_classes=3)
    assert Classifier(model, device="cpu").labels == ("class 0", "class 1", "class 2")


def test_a_bare_state_dict_says_nothing(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, tmp_path / "model.pt")
    assert create_model("hardnet39ds", weights=tmp_path / "model.pt").weights_record is None


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"classes": "cat"}, '"classes" must be a list of names'),
        ({"classes": ["cat", 3]}, '"classes" must be a list of names'),
        ({"classes": ["cat", " "]}, '"classes" must be a list of names'),
        ({"preprocessing": []}, '"preprocessing" must hold resize and crop'),
        *(
            ({"preprocessing": TOLD | wrong}, '"preprocessing" must hold resize and crop')
            for wrong in (
                {"resize": 31},
                {"crop": 0},
                {"crop": True},
                {"resize": 10**9},
                {"resize": 40.0},
                {"mean": [0.1, 0.2]},
                {"mean": [0.1, 0.2, float("nan")]},
                {"mean": "abc"},
                {"std": [1, 1, 0]},
                {"std": None},
            )
        ),
    ],
)
def test_nonsense_is_refused(
    entries: dict[str, Any], said: str, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    path = save(tmp_path / "model.pt", state, **entries)
    with pytest.raises(WeightsError, match=said) as caught:
        create_model("hardnet39ds", weights=path)
    assert str(caught.value).startswith(str(path))
