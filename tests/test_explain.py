"""Where a class is seen: against Grad-CAM by hand, and what is drawn of it."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import hardnet
from hardnet.explain import activation_level, class_activation, overlay, seen_picture
from hardnet.images.preprocess import Preprocessing


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
    found = class_activation(model, image, 4)
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
        class_activation(model, torch.rand(3, 64, 64), 3)


def test_the_picture_is_what_was_prepared() -> None:
    image = Image.effect_noise((40, 40), 80).convert("RGB")
    wanted = Preprocessing(resize=40, crop=40)
    assert seen_picture(wanted(image), wanted).tobytes() == image.tobytes()


def test_the_overlay_runs_from_blue_to_red() -> None:
    activation = torch.tensor([[0.0, 1.0]])
    blue, red = (overlay(Image.new("RGB", (2, 1)), activation, 1.0).getpixel((x, 0)) for x in (0, 1))
    assert blue[2] > blue[0]
    assert red[0] > red[2]
