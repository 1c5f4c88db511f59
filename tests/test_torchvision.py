"""HarDNet in torchvision: its registry, its feature tools, and weights that are verified all the same."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from conftest import MODELS, random_images
from pictures import IMAGES
from PIL import Image
from published import publish
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor

import hardnet
import hardnet.torchvision_registry
from hardnet import HarDNet, WeightsError
from hardnet.torchvision_registry import return_layers
from hardnet.weights.catalog import CATALOG

SMALL = "hardnet39ds"
OPS = {"hardnet39ds": 0.429, "hardnet68ds": 0.775, "hardnet68": 4.246, "hardnet85": 9.074}
SIZES = {"hardnet39ds": 13.3, "hardnet68ds": 15.9, "hardnet68": 67.0, "hardnet85": 139.9}


def test_the_models_are_listed() -> None:
    assert sorted(models.list_models(include="hardnet*")) == sorted(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_the_catalogues(name: str) -> None:
    weights = models.get_model_weights(name)
    assert weights is models.get_model_weights(models.get_model_builder(name))
    assert weights is getattr(hardnet.torchvision_registry, weights.__name__)
    assert [member.name for member in weights] == hardnet.list_weights(name)
    for member in weights:
        record = CATALOG[name, member.name]
        dataset = "ImageNet-1K" if member.name.startswith("IMAGENET1K") else record.evaluated_on
        assert member.meta["record"] is record
        assert member.url == record.sources[0].url
        preset, expected = member.transforms(), record.preprocessing
        assert (preset.crop_size, preset.resize_size) == ([expected.crop], [expected.resize])
        assert (tuple(preset.mean), tuple(preset.std)) == (expected.mean, expected.std)
        assert member.meta["recipe"]
        assert member.meta["_ops"] == pytest.approx(OPS[name] if dataset == "ImageNet-1K" else 0.035, abs=6e-4)
        assert member.meta["_file_size"] == pytest.approx(SIZES[name] if dataset == "ImageNet-1K" else 4.7, abs=0.1)
        assert member.meta["categories"] == list(record.categories)
        assert member.meta["_metrics"][dataset]["acc@1"] == pytest.approx(100 - record.top1_error)
        model = hardnet.create_model(name, num_classes=record.num_classes)
        assert member.meta["num_params"] == sum(parameter.numel() for parameter in model.parameters())
        assert pickle.loads(pickle.dumps(member)) is member  # noqa: S301  our own bytes
        assert copy.deepcopy(member) is member
    assert weights.DEFAULT.meta["record"] == hardnet.get_weights(name)


def test_torchvisions_preset_equals_our_preprocessing() -> None:
    picture = Image.open(IMAGES / "cat.jpg").convert("RGB")
    preset = models.get_model_weights("hardnet68").DEFAULT.transforms()
    assert torch.equal(preset(picture), hardnet.get_weights("hardnet68", "IMAGENET1K_V1").transforms()(picture))


@pytest.mark.parametrize("how", ["full name", "member"])
def test_weights_come_through_our_loader(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = models.get_model_weights(SMALL)
    member = weights.IMAGENET1K_V1
    record = publish(monkeypatch, tmp_path, SMALL)
    monkeypatch.setitem(member.meta, "record", record)
    weights = {"full name": "HarDNet39DS_Weights.IMAGENET1K_V1", "member": member}[how]
    model = models.get_model(SMALL, weights=weights, num_classes=7).eval()
    assert type(model) is HarDNet
    assert model.weights_record is record
    assert model(random_images(1, 3, 64, 64)).shape == (1, 7)
    state = member.get_state_dict(progress=False)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items() if ".14.3." not in key)
    for file in tmp_path.glob("*.pth"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    with pytest.raises(WeightsError, match="digest"):
        models.get_model(SMALL, weights=weights)


def test_torchvisions_feature_tools_give_the_pyramid() -> None:
    model = models.get_model(SMALL).eval()
    pyramid = models.get_model(SMALL, features_only=True).eval()
    state = model.state_dict()
    pyramid.load_state_dict({key: state[key] for key in pyramid.state_dict()})
    layers = return_layers(pyramid)
    x = random_images(1, 3, 64, 96)
    with torch.no_grad():
        expected = pyramid(x)
        extractor = create_feature_extractor(model, {f"base.{module}": number for module, number in layers.items()})
        for getter in (extractor, IntermediateLayerGetter(pyramid.base, layers)):
            assert all(torch.equal(got, want) for got, want in zip(getter(x).values(), expected, strict=True))
        channels = [info.channels for info in pyramid.feature_info]
        backbone = BackboneWithFPN(pyramid.base, layers, channels, 32).eval()
        assert [tuple(level.shape[2:]) for level in backbone(x).values()][:4] == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"weights": "IMAGENET1K_V3"}, KeyError),
        ({"weights": True}, TypeError),
        ({"num_clases": 3}, TypeError),
    ],
)
def test_wrong_keywords_are_refused(keywords: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        models.get_model(SMALL, **keywords)
