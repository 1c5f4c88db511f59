"""Grad-CAM: against its formula, for any class, stride, head and device, and as a picture."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pictures import IMAGES, noise
from PIL import Image
from torch import nn

import hardnet
from hardnet.cli import main
from hardnet.images.preprocess import Preprocessing
from hardnet.inference.gradcam import Explanation, activation_level, class_activations, explain, heat_map, seen_picture

CAT = IMAGES / "cat.jpg"
SMALL = Preprocessing(resize=72, crop=64)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_map_is_grad_cam(frozen: bool) -> None:
    """Before a pooled linear layer, Grad-CAM is that layer's weights over the feature map."""
    torch.manual_seed(0)
    model = hardnet.create_model("hardnet39ds", num_classes=7).eval().requires_grad_(not frozen)
    image = torch.rand(3, 256, 288)
    with torch.no_grad():
        [features] = model.forward_features(image[None])
        coarse = torch.einsum("c,chw->hw", model.get_classifier().weight[4], features).relu()
    expected = torch.nn.functional.interpolate(coarse[None, None], size=(256, 288), mode="bilinear")[0, 0]
    [activation] = class_activations(model, image, [4])
    assert activation.shape == (256, 288)
    assert activation.min() >= 0
    assert activation.max() == 1
    torch.testing.assert_close(activation, expected / expected.max(), atol=1e-4, rtol=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == [not frozen] * len(list(model.parameters()))


@pytest.mark.parametrize(("side", "stride"), [(224, 16), (128, 16), (127, 8), (64, 8), (32, 4)])
def test_the_map_is_not_too_coarse(side: int, stride: int) -> None:
    assert activation_level(hardnet.create_model("hardnet39ds"), side, side).stride == stride


def test_any_class_stride_and_head(device: str) -> None:
    torch.manual_seed(0)
    model = hardnet.create_model("hardnet39ds", num_classes=5)
    model.base[-1] = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 5)
    )
    classifier = hardnet.Classifier(model, device=device, labels=list("abcde"), transform=SMALL)
    maps = []
    for label, stride in (("a", 4), ("a", 16), ("e", 4), ("e", 16)):
        explanation = explain(classifier, CAT, label=label, stride=stride)
        assert explanation.prediction.label == label
        assert explanation.activation.shape == (64, 64)
        assert explanation.activation.device.type == "cpu"
        maps.append(explanation.activation)
    assert not torch.allclose(maps[1], maps[3])
    explanation = explain(classifier, CAT)
    assert explanation.prediction == classifier.predict(CAT)[0].top
    assert explanation.result.source == str(CAT)
    html = explanation._repr_html_()
    assert html.count("<img ") == 2
    assert all(f"<td>{label}</td>" in html for label in "abcde")
    with pytest.raises(ValueError, match="stride must be one of 2, 4"):
        explain(classifier, CAT, stride=5)
    with pytest.raises(ValueError, match="expected one image, got 2"):
        explain(classifier, torch.zeros(2, 3, 64, 64))
    with pytest.raises(TypeError, match="requires a HarDNet"):
        explain(hardnet.Classifier(nn.Flatten(), device=device), CAT)


def test_a_label_is_a_name_or_else_an_index() -> None:
    model = hardnet.create_model("hardnet39ds", num_classes=4)
    classifier = hardnet.Classifier(model, device="cpu", labels=["1", "0", "Circle", "2"], transform=SMALL)
    for label, index in {"1": 0, "0": 1, "2": 3, "3": 3, 1: 1, 3: 3, "Circle": 2, "circle": 2}.items():
        assert explain(classifier, CAT, label=label).prediction.index == index
    for label, near in (("circl", r"\(did you mean 'Circle'\?\)"), (4, ""), ("-1", "")):
        with pytest.raises(ValueError, match=f"no class {label!r} among the 4 of the model.*{near}$"):
            explain(classifier, CAT, label=label)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_of_the_caller_are_not_needed(context: type) -> None:
    with context():
        classifier = hardnet.Classifier("hardnet39ds", weights="FASHION_MNIST", device="cpu")
        inside = explain(classifier, CAT).activation
    assert torch.equal(inside, explain(classifier, CAT).activation)


@pytest.mark.parametrize(("width", "height"), [(451, 300), (28, 28), (64, 120), (8, 600)])
def test_the_box_is_what_the_model_gets(width: int, height: int) -> None:
    transform = Preprocessing(resize=96, crop=64)
    ramps = [(torch.arange(side) + 0.5) / side * 255 for side in (width, height)]
    values = torch.stack(torch.meshgrid(*ramps, indexing="xy") * 2, 2)[..., :3].round().byte()
    pixels = transform.pixels(Image.fromarray(values.numpy())).float() / 255
    left, top, right, bottom = transform.crop_box(width, height)
    for first, last, side, got in ((left, right, width, pixels[0, 32]), (top, bottom, height, pixels[1, :, 32])):
        expected = (first + (torch.arange(64) + 0.5) * (last - first) / 64) / side
        torch.testing.assert_close(got[4:-4], expected[4:-4], atol=0.01, rtol=0)


def test_the_overlay_is_the_picture_with_the_crop_outlined() -> None:
    picture = noise(90, 60)
    nothing = Explanation(*[None] * 2, torch.zeros(64, 64), picture, (20.0, 10.0, 60.0, 50.0))  # type: ignore[arg-type]
    large = picture.resize((630, 420), Image.Resampling.NEAREST)
    drawn = nothing.overlay()
    assert drawn.size == large.size
    for box, equal in (((0, 0, 630, 70), True), ((150, 80, 410, 340), True), ((138, 60, 142, 360), False)):
        assert (drawn.crop(box).tobytes() == large.crop(box).tobytes()) == equal
    whole = replace(nothing, box=(0, 0, 90, 60))
    assert whole.overlay().tobytes() == large.tobytes()


def test_the_verb_draws_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(CAT), "--output", str(tmp_path / "map.png"), "--label", "Coat", "--stride", "8"]) == 0
    assert capsys.readouterr().out.endswith("%  Coat\n")
    assert Image.open(tmp_path / "map.png").size == Image.open(CAT).size
    assert main(["explain", str(CAT), "--output", str(tmp_path / "map.npz")]) == 2
    assert main(["explain", str(CAT), "--output", str(tmp_path / "no" / "map.png")]) == 4
    assert main(["explain", "gone.png", "--output", str(tmp_path / "map.png")]) == 2


def test_the_verb_draws_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, maps = tmp_path / "pictures", tmp_path / "maps"
    for name in ("cat.jpg", "cat.png", "inner/cat.jpg"):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(CAT).save(pictures / name)
    (pictures / "broken.png").write_bytes(b"no picture")
    assert main(["explain", str(pictures), "--output", str(maps)]) == 1
    names = {path.relative_to(maps).as_posix() for path in maps.rglob("*.png")}
    assert names == {"cat.png", "cat.png.png", "inner/cat.png"}
    printed = capsys.readouterr()
    assert all(f"  {maps / name}\n" in printed.out for name in names)
    assert "broken.png" in printed.err
    assert "1 of 4 images" in printed.err
    before = (pictures / "cat.png").read_bytes()
    assert main(["explain", str(pictures), "--output", str(pictures)]) == 2
    assert (pictures / "cat.png").read_bytes() == before


def test_the_picture_of_a_tensor_is_what_was_prepared() -> None:
    image, transform = noise(40, 40), Preprocessing(resize=40, crop=40)
    assert seen_picture(transform(image), transform).tobytes() == image.tobytes()


def test_a_map_runs_from_blue_to_red_and_is_transparent_at_zero() -> None:
    zero, blue, red = (heat_map(torch.tensor([[0.0, 0.1, 1.0]]), 0.5).getpixel((x, 0)) for x in range(3))
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    assert (zero[3], red[3]) == (0, 128)
