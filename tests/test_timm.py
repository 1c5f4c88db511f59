"""HarDNet in timm: what timm's own model tests ask of a model, and weights that are verified all the same."""

from __future__ import annotations

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
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import hardnet
import hardnet.timm_registry
from hardnet import WeightsError
from hardnet.models.config import CONFIGS, feature_levels, stage_indices
from hardnet.timm_registry import TimmHarDNet
from hardnet.weights.catalog import CATALOG

CHANNELS = {name: [level.channels for level in feature_levels(CONFIGS[name])] for name in MODELS}
SMALL = "hardnet39ds"


def test_lists_and_tags() -> None:
    assert sorted(timm.list_models("hardnet*")) == sorted(MODELS)
    assert set(timm.list_pretrained("hardnet*")) == {f"{model}.{tag.lower()}" for model, tag in CATALOG}
    assert all(timm.is_model(name) for name in MODELS)
    assert all(timm.models.is_model_pretrained(name) for name in MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_same_network(name: str) -> None:
    model = timm.create_model(name).eval()
    assert isinstance(model, TimmHarDNet)
    ours = hardnet.create_model(name).eval()
    assert list(model.state_dict()) == list(ours.state_dict())
    model.load_state_dict(golden_state(name))
    ours.load_state_dict(golden_state(name))
    x = random_images(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(model(x), ours(x))
        assert torch.equal(model.forward_head(model.forward_features(x)), ours(x))


@pytest.mark.parametrize("name", [SMALL, pytest.param("hardnet85", marks=pytest.mark.slow)])
def test_the_default_config_tells_the_truth(name: str) -> None:
    model = timm.create_model(name).eval()
    cfg, keys = model.default_cfg, model.state_dict().keys()
    assert model.pretrained_cfg is cfg
    assert (cfg["architecture"], cfg["tag"]) == (name, "imagenet1k_v1")
    assert cfg["first_conv"] + ".weight" in keys
    assert cfg["classifier"] + ".weight" in keys
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    x = random_images(1, *cfg["input_size"])
    with torch.inference_mode():
        features = model.forward_features(x)
        assert tuple(features.shape) == (1, model.num_features, *cfg["pool_size"])
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (1, model.head_hidden_size)
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
        assert torch.equal(model(x), model.forward_head(features, pre_logits=True))
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)
        model.reset_classifier(5, "max")
        assert model.num_classes == 5
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.amax((2, 3)))
        assert model(x).shape == (1, 5)
        bare = timm.create_model(name, num_classes=0, global_pool="").eval()
        assert bare(x).shape == features.shape


def test_data_config_and_transform_are_the_catalogues() -> None:
    model = timm.create_model("hardnet68")
    config = timm.data.resolve_model_data_config(model)
    wanted = CATALOG["hardnet68", "IMAGENET1K_V1"].preprocessing
    assert config["input_size"] == (3, wanted.crop, wanted.crop)
    assert (config["mean"], config["std"], config["interpolation"]) == (wanted.mean, wanted.std, "bilinear")
    image = Image.open(IMAGES / "cat.jpg").convert("RGB")
    theirs = timm.data.create_transform(**config, is_training=False)(image)
    ours = CATALOG["hardnet68", "IMAGENET1K_V1"].transforms()(image)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_features_only(name: str) -> None:
    model = timm.create_model(name, features_only=True).eval()
    assert model.feature_info.channels() == CHANNELS[name]
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    with torch.inference_mode():
        shapes = [tuple(level.shape) for level in model(random_images(1, 3, 96, 96))]
    assert shapes == [(1, c, 96 // r, 96 // r) for c, r in zip(CHANNELS[name], (2, 4, 8, 16, 32), strict=True)]


@pytest.mark.parametrize("kind", ["list", "hook", "fx", "getter", "dict"])
def test_every_kind_of_feature_wrapper_gives_our_pyramid(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, tmp_path, SMALL)
    model = timm.create_model(SMALL, pretrained=True, features_only=True, feature_cls=kind, out_indices=(1, -2)).eval()
    ours = hardnet.hardnet39ds(pretrained=True, features_only=True, out_indices=(1, -2)).eval()
    x = random_images(1, 3, 64, 64)
    with torch.inference_mode():
        levels = model(x)
        levels = list(levels.values()) if kind == "dict" else levels
        assert len(levels) == 2
        assert all(torch.equal(got, want) for got, want in zip(levels, ours(x), strict=True))
    assert model.feature_info.channels() == [info.channels for info in ours.feature_info]
    kept = sum(parameter.numel() for parameter in model.parameters())
    if kind in ("list", "dict", "getter"):  # what lies behind the last level is dropped
        assert kept == sum(parameter.numel() for parameter in ours.parameters())


def test_intermediates() -> None:
    model = timm.create_model(SMALL).eval()
    x = random_images(1, 3, 64, 64)
    with torch.inference_mode():
        last, levels = model.forward_intermediates(x)
        assert torch.equal(last, model.forward_features(x))
        assert [level.shape[1] for level in levels] == CHANNELS[SMALL]
        only = model.forward_intermediates(x, indices=[0, 2], stop_early=True, intermediates_only=True)
        assert all(torch.equal(got, want) for got, want in zip(only, [levels[0], levels[2]], strict=True))
        assert torch.equal(model.forward_intermediates(x, indices=[0, 2])[0], last)
        assert torch.equal(model.forward_intermediates(x, indices=[0, 2], stop_early=True)[0], levels[2])
        assert model.prune_intermediate_layers([0, 2]) == [0, 2]
        assert len(model.base) == feature_levels(model.config)[2].module_index + 2
        assert torch.equal(model(x), levels[2])  # neither pooling nor a head are left
        assert model.num_features == levels[2].shape[1]


def fx_model(model: nn.Module) -> nn.Module:
    train, evaluation = get_graph_node_names(model)
    return create_feature_extractor(model, train_return_nodes=train[-1:], eval_return_nodes=evaluation[-1:])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("name", [SMALL, pytest.param("hardnet85", marks=pytest.mark.slow)])
def test_fx_and_torchscript(name: str) -> None:
    model = timm.create_model(name, num_classes=42).eval()
    x = random_images(2, 3, 64, 64)
    with torch.no_grad():
        want = model(x)
        traced = fx_model(model)
        assert torch.equal(next(iter(traced(x).values())), want)
        with torch.jit.optimized_execution(False):
            torch.testing.assert_close(torch.jit.script(model)(x), want)
            torch.testing.assert_close(next(iter(torch.jit.script(traced)(x).values())), want)
        getter = timm.create_model(name, features_only=True, feature_cls="getter", out_indices=(1, -2)).eval()
        assert all(torch.equal(got, want) for got, want in zip(torch.jit.script(getter)(x), getter(x), strict=True))
    trainable = fx_model(timm.create_model(name, num_classes=42).train())
    next(iter(trainable(x).values())).mean().backward()
    assert all(parameter.grad is not None for parameter in trainable.parameters())


@pytest.mark.parametrize("name", [SMALL, pytest.param("hardnet85", marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [timm.create_model, hardnet.create_model])
def test_layer_decay(name: str, make: Callable[..., nn.Module]) -> None:
    model = make(name, num_classes=3)
    depth = len(CONFIGS[name].block_layers)
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    assert sorted({group["lr_scale"] for group in groups}) == [0.5**n for n in range(depth + 1, -1, -1)]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    for key, parameter in model.named_parameters():
        index = int(key.split(".")[1])
        stage = sum(index >= stage.block for stage in stage_indices(model.config)) + (index == len(model.base) - 1)
        assert scales[id(parameter)] == 0.5 ** (depth + 1 - stage)


@pytest.mark.parametrize("pool", ["", "max"])
def test_reset_classifier_keeps_the_mode_and_finds_a_pooling(pool: str) -> None:
    model = timm.create_model(SMALL, num_classes=0, global_pool=pool).eval()
    model.reset_classifier(2)
    assert (model.num_classes, model.global_pool) == (2, pool or "avg")
    assert model(random_images(2, 3, 64, 64)).shape == (2, 2)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("safe", [False, True])
def test_a_saved_folder_is_read_back(safe: bool, tmp_path: Path) -> None:
    model = timm.create_model(SMALL, num_classes=5).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=safe)
    x = random_images(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), model(x))
        assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=2).eval()(x).shape == (1, 2)


@pytest.mark.parametrize("classes", [None, 5, 0])
def test_pretrained_goes_through_our_loader(
    classes: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = publish(monkeypatch, tmp_path, SMALL)
    ours = hardnet.hardnet39ds(pretrained=True, in_chans=1, num_classes=0).eval()
    model = timm.create_model(SMALL, pretrained=True, in_chans=1, num_classes=classes).eval()
    assert model.weights_record is record
    x = random_images(1, 1, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.forward_head(model.forward_features(x), pre_logits=True), ours(x))
        assert model(x).shape == (1, {None: 1000, 5: 5, 0: 1024}[classes])
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


def test_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(golden_state(SMALL), tmp_path / "own.pth")
    overlay = {"file": tmp_path / "own.pth"}
    model = timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=overlay)
    golden = golden_state(SMALL)
    assert all(torch.equal(value, golden[key]) for key, value in model.state_dict().items())
    with pytest.raises(WeightsError, match="no such file"):
        timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay={"file": "no.pth"})


def test_timms_downloader_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    with monkeypatch.context() as patched:
        patched.setattr(timm.models._builder, "load_pretrained", lambda *_, **__: pytest.fail("timm's own loader"))
        with pytest.raises(WeightsError):
            timm.create_model(SMALL, pretrained=True)
        for foreign in ({"url": "https://example.invalid/x.pth"}, {"hf_hub_id": "someone/hardnet"}):
            with pytest.raises(ValueError, match=r"weights of its catalogue \(imagenet1k_v1, "):
                timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=foreign)
    with pytest.raises(URLError, match="unknown url type: hardnet"):
        timm.models.load_pretrained(timm.create_model(SMALL))


@pytest.mark.parametrize(
    ("keywords", "error", "said"),
    [
        ({"features_only": True, "out_indices": (1, 5)}, ValueError, r"levels 0 to 4 .* got \(1, 5\)"),
        ({"features_only": True, "out_indices": 6}, AssertionError, "out of range"),
        ({"features_only": True, "out_indices": (3, 1)}, ValueError, "must rise"),
        ({"features_only": True, "output_stride": 4}, ValueError, r"one of \(32, 16, 8\), got 4"),
        ({"in_chans": 0}, ValueError, "in_chans must be an integer >= 1, got 0"),
        ({"num_classes": -1}, ValueError, "num_classes .* got -1"),
        ({"global_pool": "median"}, ValueError, "global_pool must be one of .* got 'median'"),
        ({"global_pool": ""}, ValueError, "goes with num_classes=0, got 1000"),
        ({"drop_path_rate": 0.1}, TypeError, "drop_path_rate"),
        ({"pretrained_cfg": "imagenet1k_v9"}, RuntimeError, "imagenet1k_v9"),
    ],
)
def test_what_cannot_be_had_is_said(keywords: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        timm.create_model(SMALL, **keywords)


def test_a_model_of_timms_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def hardnet68() -> None: ...

    hardnet68.__module__ = "timm.models.hardnet"
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "hardnet68", hardnet68)
    with pytest.raises(ImportError, match=r"other models under these names: hardnet68 \(timm\.models\.hardnet\)"):
        hardnet.timm_registry._register()
    assert timm.model_entrypoint("hardnet68") is hardnet68


def test_a_timm_that_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.ModuleType("timm")
    old.__version__ = "1.0.2+cpu"
    monkeypatch.delitem(sys.modules, "hardnet.timm_registry")
    for module, said in ((old, r"timm 1\.0\.2\+cpu is installed"), (None, "timm is not installed")):
        monkeypatch.setitem(sys.modules, "timm", module)
        with pytest.raises(
            ImportError, match=said + r', timm>=.* is required: pip install "timm>=[0-9.]+" \(or, .*\[timm\]'
        ):
            __import__("hardnet.timm_registry")
