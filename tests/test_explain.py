"""Grad-CAM: against its formula, for any class, stride, head and device, and as a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pictures import IMAGES
from PIL import Image
from torch import nn

import hardnet
from hardnet.cli import main
from hardnet.images.preprocess import Preprocessing
from hardnet.inference.gradcam import activation_level, class_activations, explain, overlay, seen_picture

CAT = IMAGES / "cat.jpg"


@pytest.mark.parametrize("frozen", [False, True])
def test_the_map_is_grad_cam(frozen: bool) -> None:
    """Before a pooled linear layer, Grad-CAM is that layer's weights over the feature map."""
    torch.manual_seed(0)
    model = hardnet.create_model("hardnet39ds", num_classes=7).eval().requires_grad_(not frozen)
    image = torch.rand(3, 160, 192)
    with torch.no_grad():
        [features] = model.forward_features(image[None])
        coarse = torch.einsum("c,chw->hw", model.get_classifier().weight[4], features).relu()
    expected = torch.nn.functional.interpolate(coarse[None, None], size=(160, 192), mode="bilinear")[0, 0]
    [found] = class_activations(model, image, [4])
    assert found.shape == (160, 192)
    assert found.min() >= 0
    assert found.max() == 1
    torch.testing.assert_close(found, expected / expected.max(), atol=1e-4, rtol=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == [not frozen] * len(list(model.parameters()))


@pytest.mark.parametrize(("side", "stride"), [(224, 32), (128, 32), (127, 16), (64, 16), (32, 8)])
def test_the_map_is_not_too_coarse(side: int, stride: int) -> None:
    assert activation_level(hardnet.create_model("hardnet39ds"), side, side).stride == stride


def test_there_is_no_such_class() -> None:
    model = hardnet.create_model("hardnet39ds", num_classes=3).eval()
    with pytest.raises(ValueError, match="between 0 and 2, got 3"):
        class_activations(model, torch.rand(3, 64, 64), [3])


def test_any_class_stride_and_head(device: str) -> None:
    torch.manual_seed(0)
    model = hardnet.create_model("hardnet39ds", num_classes=5)
    model.base[-1] = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 5)
    )
    transform = Preprocessing(resize=72, crop=64)
    classifier = hardnet.Classifier(model, device=device, labels=list("abcde"), transform=transform)
    maps = {
        (label, stride): explain(classifier, CAT, label=label, stride=stride) for label in "ae" for stride in (4, 16)
    }
    for (label, _), one in maps.items():
        assert one.prediction.label == label
        assert one.activation.shape == (64, 64)
        assert one.activation.device.type == "cpu"
        assert one.overlay().size == one.picture.size == (64, 64)
    assert not torch.allclose(maps["a", 16].activation, maps["e", 16].activation)
    assert explain(classifier, CAT).prediction == classifier.predict(CAT)[0].top
    named = explain(classifier, CAT, label=3)
    assert named.prediction.label == "d"
    assert named.result.source == str(CAT)
    shown = named._repr_html_()
    assert shown.count("<img ") == 2
    assert all(f"<td>{label}</td>" in shown for label in "abcde")
    for options, message in (({"label": "z"}, "there is no class 'z'"), ({"stride": 5}, "stride must be one of 2, 4")):
        with pytest.raises(ValueError, match=message):
            explain(classifier, CAT, **options)
    with pytest.raises(ValueError, match="expected one image, got 2"):
        explain(classifier, torch.zeros(2, 3, 64, 64))
    with pytest.raises(TypeError, match="requires a HarDNet"):
        explain(hardnet.Classifier(nn.Flatten(), device=device), CAT)


def test_the_verb_draws_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(CAT), "--output", str(tmp_path / "map.png"), "--label", "Coat", "--stride", "8"]) == 0
    assert capsys.readouterr().out.endswith("%  Coat\n")
    assert Image.open(tmp_path / "map.png").size == (448, 448)
    assert main(["explain", str(CAT), "--output", str(tmp_path / "map.npz")]) == 2
    assert main(["explain", str(CAT), "--output", str(tmp_path / "no" / "map.png")]) == 4
    assert main(["explain", "gone.png", "--output", str(tmp_path / "map.png")]) == 2


def test_the_picture_is_what_was_prepared() -> None:
    image = Image.effect_noise((40, 40), 80).convert("RGB")
    wanted = Preprocessing(resize=40, crop=40)
    assert seen_picture(wanted(image), wanted).tobytes() == image.tobytes()


def test_the_overlay_runs_from_blue_to_red() -> None:
    activation = torch.tensor([[0.1, 0.9]])
    blue, red = (overlay(Image.new("RGB", (2, 1)), activation, 1.0).getpixel((x, 0)) for x in (0, 1))
    assert blue[2] > blue[0]
    assert red[0] > red[2]
