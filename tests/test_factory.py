"""Making a model: names, tags, keywords; what is wrong is said."""

import inspect
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MODELS, golden_state
from published import publish

import hardnet
from hardnet import HarDNet, WeightsError, create_model, get_weights, list_models, list_weights
from hardnet.models.layers import HarDBlock
from hardnet.weights.catalog import CATALOG

TAG = "IMAGENET1K_V1"
FILE = f"hardnet39ds-{TAG}.pth"


def test_lists() -> None:
    assert list_models() == list(MODELS)
    assert {(name, tag) for name in MODELS for tag in list_weights(name)} == set(CATALOG)
    assert str(get_weights("hardnet85", "IMAGENET1K_V2")) == "hardnet85 IMAGENET1K_V2"


@pytest.mark.parametrize("name", MODELS)
def test_builders_build_their_own(name: str) -> None:
    builder = getattr(hardnet, name)
    model = builder(num_classes=7, in_chans=5, drop_rate=0.25)
    assert isinstance(model, HarDNet)
    assert (model.config.name, model.num_classes, model.in_chans) == (name, 7, 5)
    assert model.base[-1][2].p == 0.25
    assert model(torch.rand(2, 5, 64, 64)).shape == (2, 7)
    assert builder.__name__ == name
    keywords = [key for key in inspect.signature(create_model).parameters if key != "name"]
    assert list(inspect.signature(builder).parameters) == ["pretrained", *keywords]
    assert all(keyword in builder.__doc__ for keyword in ("pretrained", *keywords))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: create_model("hardnet68d"), ValueError, r"unknown model 'hardnet68d'.*hardnet39ds, .*did you mean"),
        (lambda: create_model(None), ValueError, "unknown model None"),
        (lambda: list_weights("resnet50"), ValueError, "unknown model 'resnet50'; known: hardnet39ds, "),
        (lambda: get_weights("hardnet68", "imagenet1k_v1"), ValueError, "did you mean 'IMAGENET1K_V1'"),
        (lambda: get_weights("hardnet68", "IMAGENET1K_V2"), ValueError, "hardnet68 has no weights 'IMAGENET1K_V2'"),
        (lambda: create_model("hardnet68", weights="IMAGENET1K_V3"), ValueError, "known: IMAGENET1K_V1"),
        (lambda: create_model("hardnet68", weights="no/such.pth"), WeightsError, r"no/such\.pth: no such file"),
        (lambda: create_model("hardnet68", weights=3), TypeError, "tag, a record or a path, got int"),
        (
            lambda: create_model("hardnet68", weights=CATALOG["hardnet85", "IMAGENET1K_V1"]),
            ValueError,
            "not for hardnet68",
        ),
        (lambda: hardnet.hardnet68(num_class=3), TypeError, r"hardnet68\(\).*'num_class'.*mean 'num_classes'"),
        (lambda: hardnet.hardnet68(True, weights="IMAGENET1K_V1"), ValueError, "one of the two"),
        (lambda: create_model("hardnet68", num_classes=-1), ValueError, "num_classes must be .* got -1"),
        (lambda: create_model("hardnet68", num_classes=True), ValueError, "got True"),
        (lambda: create_model("hardnet68", in_chans=0), ValueError, "in_chans must be .* got 0"),
        (lambda: create_model("hardnet68", drop_rate=1.5), ValueError, r"drop_rate is from 0 to below 1, got 1\.5"),
        (lambda: hardnet.HarDNet("hardnet68"), TypeError, "takes a HarDNetConfig, got str; to build a model by name"),  # type: ignore[arg-type]
        (
            lambda: hardnet.HarDNet(depth_wise=True, arch=39, in_channels=1, pretrained=True),
            TypeError,
            r'create_model\("hardnet39ds", weights="DEFAULT", in_chans=1\)',
        ),
    ],
)
def test_what_is_wrong_is_said(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_tag_record_and_file_give_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = publish(monkeypatch, tmp_path, "hardnet39ds")
    x = torch.rand(1, 3, 64, 64)
    want = create_model("hardnet39ds")
    want.load_state_dict(golden_state("hardnet39ds"))
    logits = want.eval()(x)
    for weights in (TAG, record, tmp_path / FILE, str(tmp_path / FILE)):
        model = create_model("hardnet39ds", weights=weights).eval()
        assert torch.equal(model(x), logits)
        assert model.weights_record == record  # a file that the catalogue knows by its digest is known as such
    assert torch.equal(hardnet.hardnet39ds(pretrained=True).eval()(x), logits)


def test_another_number_of_classes_makes_the_head_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish(monkeypatch, tmp_path, "hardnet39ds")
    with caplog.at_level(logging.INFO, "hardnet"):
        model = create_model("hardnet39ds", weights=TAG, num_classes=10)
    assert "1000 classes in the weights, 10 in the model: the head is new" in caplog.text
    golden = golden_state("hardnet39ds")
    state = model.state_dict()
    assert [key for key in golden if not torch.equal(golden[key], state[key])] == [
        "base.14.3.weight",
        "base.14.3.bias",
    ]
    assert state["base.14.3.weight"].std() > 0


def test_other_channels_adapt_the_stem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, tmp_path, "hardnet39ds")
    colour = create_model("hardnet39ds", weights=TAG).eval().double()
    grey = create_model("hardnet39ds", weights=TAG, in_chans=1).eval().double()
    six = create_model("hardnet39ds", weights=TAG, in_chans=6).eval().double()
    x = torch.rand(1, 1, 64, 64).double()
    torch.testing.assert_close(grey(x), colour(x.repeat(1, 3, 1, 1)), rtol=1e-5, atol=1e-5)
    picture = torch.rand(1, 3, 64, 64).double()
    torch.testing.assert_close(six(picture.repeat(1, 2, 1, 1)), colour(picture), rtol=1e-5, atol=1e-5)


def test_plain_relu_blocks_where_the_record_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = replace(publish(monkeypatch, tmp_path, "hardnet39ds"), block_activation="relu")
    base = create_model("hardnet39ds", weights=record).base
    kinds = {index: type(module.relu) for index, module in enumerate(base) if hasattr(module, "relu")}
    assert set(kinds.values()) == {torch.nn.ReLU6}
    blocks = [module for module in base if isinstance(module, HarDBlock)]
    in_blocks = {type(module) for block in blocks for module in block.modules() if "ReLU" in type(module).__name__}
    assert in_blocks == {torch.nn.ReLU}


def test_importing_is_light() -> None:
    """Models need torch alone; reading pictures and classifying import the other packages on first use."""
    code = (
        "import sys, torch\nbefore = set(sys.modules)\nimport hardnet\n"
        "hardnet.hardnet39ds(features_only=True)\n"
        "import hardnet.images.batches, hardnet.inference.classifier\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new & {'torchvision', 'PIL', 'timm', 'filelock', 'ssl'}))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('hardnet') and name.endswith('_registry')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_the_public_names_are_all_there() -> None:
    assert all(getattr(hardnet, name) is not None for name in hardnet.__all__)
    assert set(hardnet.__all__) <= set(dir(hardnet))
