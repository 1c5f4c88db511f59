"""HarDNet in timm: the same network, with verified weights. timm's own model tests run in test_peer_suites."""

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
from conftest import MODELS, golden_state, random_images
from pictures import IMAGES
from PIL import Image
from published import publish
from timm.optim import param_groups_layer_decay
from torch import nn

import hardnet
import hardnet.timm_registry
from hardnet import WeightsError
from hardnet.models.config import CONFIGS, stage_indices
from hardnet.timm_registry import TimmHarDNet
from hardnet.weights.catalog import CATALOG

SMALL = "hardnet39ds"


def test_lists_and_tags() -> None:
    assert sorted(timm.list_models("hardnet*")) == sorted(MODELS)
    assert set(timm.list_pretrained("hardnet*")) == {f"{model}.{tag.lower()}" for model, tag in CATALOG}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_same_network(name: str) -> None:
    model, ours = timm.create_model(name).eval(), hardnet.create_model(name).eval()
    assert isinstance(model, TimmHarDNet)
    assert list(model.state_dict()) == list(ours.state_dict())
    model.load_state_dict(golden_state(name))
    ours.load_state_dict(golden_state(name))
    x = random_images(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(model(x), ours(x))


def test_data_config_and_transform_are_the_catalogues() -> None:
    model = timm.create_model("hardnet68")
    config = timm.data.resolve_model_data_config(model)
    image = Image.open(IMAGES / "cat.jpg").convert("RGB")
    theirs = timm.data.create_transform(**config, is_training=False)(image)
    ours = CATALOG["hardnet68", "IMAGENET1K_V1"].transforms()(image)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["list", "hook", "fx", "getter"])
def test_every_kind_of_feature_wrapper_gives_our_pyramid(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, tmp_path, SMALL)
    model = timm.create_model(SMALL, pretrained=True, features_only=True, feature_cls=kind, out_indices=(1, -2)).eval()
    ours = hardnet.hardnet39ds(pretrained=True, features_only=True, out_indices=(1, -2)).eval()
    x = random_images(1, 3, 64, 64)
    with torch.inference_mode():
        levels = model(x)
        assert len(levels) == 2
        assert all(torch.equal(got, want) for got, want in zip(levels, ours(x), strict=True))
    assert model.feature_info.channels() == [info.channels for info in ours.feature_info]


@pytest.mark.parametrize("make", [timm.create_model, hardnet.create_model])
def test_layer_decay_follows_the_stages(make: Callable[..., nn.Module]) -> None:
    model = make(SMALL, num_classes=3)
    depth = len(CONFIGS[SMALL].block_layers)
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    assert sorted({group["lr_scale"] for group in groups}) == [0.5**n for n in range(depth + 1, -1, -1)]
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    for key, parameter in model.named_parameters():
        index = int(key.split(".")[1])
        stage = sum(index >= stage.block for stage in stage_indices(model.config)) + (index == len(model.base) - 1)
        assert scales[id(parameter)] == 0.5 ** (depth + 1 - stage)


def test_a_saved_folder_is_read_back(tmp_path: Path) -> None:
    model = timm.create_model(SMALL, num_classes=5).eval()
    timm.models.save_for_hf(model, tmp_path)
    x = random_images(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), model(x))
        assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=2).eval()(x).shape == (1, 2)


def test_pretrained_goes_through_our_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = publish(monkeypatch, tmp_path, SMALL)
    for classes in (None, 5, 0):
        model = timm.create_model(SMALL, pretrained=True, in_chans=1, num_classes=classes).eval()
        assert model.weights_record is record
        assert (model.categories is None) == (classes is not None)
        assert model(random_images(1, 1, 64, 64)).shape == (1, {None: 1000, 5: 5, 0: 1024}[classes])
    for file in tmp_path.glob("*.pth"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    with pytest.raises(WeightsError, match="digest"):
        timm.create_model(SMALL, pretrained=True)


def test_a_tag_brings_its_activation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def activations(model: nn.Module) -> set[type[nn.Module]]:
        return {type(module) for module in model.base[3].modules() if "ReLU" in type(module).__name__}

    record = publish(monkeypatch, tmp_path, SMALL, "IMAGENET1K_V2")
    monkeypatch.setitem(CATALOG, (SMALL, record.tag), replace(record, block_activation="relu"))
    for pretrained in (True, False):
        model = timm.create_model(f"{SMALL}.imagenet1k_v2", pretrained=pretrained)
        assert activations(model) == {nn.ReLU}
        assert model.default_cfg["tag"] == "imagenet1k_v2"
    assert activations(timm.create_model(SMALL)) == {nn.ReLU6}


def test_timms_downloader_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    with pytest.raises(WeightsError):
        timm.create_model(SMALL, pretrained=True)
    for foreign in ({"url": "https://example.invalid/x.pth"}, {"hf_hub_id": "someone/hardnet"}):
        with pytest.raises(ValueError, match="catalogue"):
            timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=foreign)
    with pytest.raises(URLError):
        timm.models.load_pretrained(timm.create_model(SMALL))


@pytest.mark.parametrize(
    "keywords",
    [
        {"features_only": True, "out_indices": (1, 5)},
        {"output_stride": 4},
        {"global_pool": ""},  # goes with num_classes=0
    ],
)
def test_wrong_keywords_are_refused(keywords: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|goes with"):
        timm.create_model(SMALL, **keywords)


def test_a_timm_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.ModuleType("timm")
    old.__version__ = "1.0.2+cpu"
    monkeypatch.delitem(sys.modules, "hardnet.timm_registry")
    for module in (old, None):
        monkeypatch.setitem(sys.modules, "timm", module)
        with pytest.raises(ImportError, match="timm>="):
            __import__("hardnet.timm_registry")
