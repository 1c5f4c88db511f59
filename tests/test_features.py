"""The feature pyramid: levels, dilation, weights; and the parts of the classifier."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from conftest import MODELS, SAMPLES, golden_input, golden_state, small_model
from torch import fx, nn

import hardnet
from hardnet import create_model
from hardnet.models.config import CONFIGS, feature_levels
from hardnet.weights.state_dict import load_state

ALL = (0, 1, 2, 3, 4)


@pytest.mark.parametrize("name", MODELS)
def test_the_pyramid_is_a_part_of_the_classifier(name: str) -> None:
    classifier = small_model(name)
    model = create_model(name, features_only=True, out_indices=ALL).eval()
    load_state(model, classifier.state_dict())
    x = golden_input(2, (1, 3, 128, 160))
    with torch.inference_mode():
        for feature, info in zip(model(x), model.feature_info, strict=True):
            assert feature.shape[1:] == (info.channels, 128 // info.stride, 160 // info.stride)
            assert torch.equal(feature, classifier.base[: info.module_index + 1](x))


@pytest.mark.parametrize("name", MODELS)
def test_what_lies_behind_the_last_level_is_not_built(name: str) -> None:
    with torch.device("meta"):
        model, full = create_model(name, features_only=True, out_indices=(1, -3)), create_model(name).state_dict()
    levels = feature_levels(CONFIGS[name])
    assert model.out_indices == (1, 2)
    assert len(model.base) == levels[2].module_index + 1
    assert [info.module for info in model.feature_info] == [f"base.{level.module_index}" for level in levels[1:3]]
    assert all(full[key].shape == value.shape for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("output_stride", [16, 8])
def test_dilation_computes_the_same_in_more_places(name: str, output_stride: int) -> None:
    """Every second (fourth) pixel of the dense map is the map of the strided network: the definition of dilation."""
    strided = create_model(name, features_only=True, out_indices=ALL).eval().double()
    dense = create_model(name, features_only=True, out_indices=ALL, output_stride=output_stride).eval().double()
    dense.load_state_dict(strided.state_dict(), strict=True)
    assert [info.stride for info in dense.feature_info] == [min(2**n, output_stride) for n in range(1, 6)]
    x = golden_input(4, (1, 3, 64, 96)).double()
    with torch.inference_mode():
        for few, many, info in zip(strided(x), dense(x), strided.feature_info, strict=True):
            step = info.stride // min(info.stride, output_stride)
            assert many.shape[2:] == (64 * step // info.stride, 96 * step // info.stride)
            torch.testing.assert_close(many[..., ::step, ::step], few, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["hardnet39ds", pytest.param("hardnet68", marks=pytest.mark.slow)])
def test_tracing_scripting_and_odd_sizes(name: str) -> None:
    model = create_model(name, features_only=True, output_stride=16).eval()
    x = torch.rand(1, 3, 65, 99)
    want = model(x)
    with torch.jit.optimized_execution(False):
        for other in (fx.symbolic_trace(model), torch.jit.script(model), copy.deepcopy(model)):
            assert all(torch.equal(got, expected) for got, expected in zip(other(x), want, strict=True))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"out_indices": (1, 5)}, r"a rising sequence of levels 0 to 4 or -5 to -1; got \(1, 5\)"),
        ({"out_indices": ()}, r"got \(\)"),
        ({"out_indices": (2, 1)}, r"rising .* got \(2, 1\)"),
        ({"out_indices": 3}, "got 3"),
        ({"output_stride": 4}, r"one of \(32, 16, 8\), got 4"),
        ({"num_classes": 10}, "HarDNetFeatures does not take num_classes"),
        ({"in_chans": 0}, "in_chans must be an integer >= 1, got 0"),
        (
            {"features_only": False, "out_indices": (1,)},
            "HarDNet does not take out_indices; features_only=True",
        ),
    ],
)
def test_what_cannot_be_had_is_said(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hardnet.hardnet39ds(**{"features_only": True, **keywords})


@pytest.mark.parametrize("name", MODELS)
def test_the_classifiers_parts_make_the_whole(name: str) -> None:
    model = create_model(name, num_classes=6).eval()
    x = torch.rand(2, 3, 64, 96)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 2, 3)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    assert torch.equal(model.forward_head(features), model(x))
    assert torch.equal(model.get_classifier()(pooled), model(x))
    with pytest.raises(ValueError, match="got"):
        model.forward_features(torch.zeros(1, 1, 64, 64))


def test_reset_classifier(tmp_path: Path) -> None:
    model = create_model("hardnet39ds", num_classes=6).eval().to(torch.float64)
    before = copy.deepcopy(model.state_dict())
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    model.reset_classifier(4)
    assert model(x).shape == (2, 4)
    assert model.num_classes == 4
    assert not model.get_classifier().bias.any()
    assert not model.get_classifier().training
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, before.get(key, value))] == [
        "base.14.3.weight",
        "base.14.3.bias",
    ]
    torch.save(model.state_dict(), tmp_path / "four.pth")
    assert create_model("hardnet39ds", weights=tmp_path / "four.pth").num_classes == 4
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))
    with pytest.raises(ValueError, match=">= 0, got -2"):
        model.reset_classifier(-2)


def test_no_head_with_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(golden_state("hardnet39ds"), tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO, "hardnet"):
        model = create_model("hardnet39ds", weights=tmp_path / "weights.pth", num_classes=0).eval()
    assert "the head is left out" in caplog.text
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1024)
    assert "base.14.3.weight" not in model.state_dict()
