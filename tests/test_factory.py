"""Making a model: names, tags, keywords; what is wrong is said."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import MODELS, golden_state

import hardnet
from hardnet import HarDNet, WeightsError, create_model, factory, get_weights, list_models, list_weights
from hardnet.weights.catalog import CATALOG, Digest, Source, WeightsRecord


def test_lists() -> None:
    assert list_models() == list(MODELS)
    assert {name: list_weights(name) for name in MODELS} == {
        name: [tag for model, tag in CATALOG if model == name] for name in MODELS
    }
    assert list_weights("hardnet68") == ["IMAGENET1K_V1"]
    record = get_weights("hardnet85", "IMAGENET1K_V2")
    assert (record.model, record.tag, record.block_activation) == ("hardnet85", "IMAGENET1K_V2", "relu")


@pytest.mark.parametrize("name", MODELS)
def test_builders_build_their_own(name: str) -> None:
    builder = getattr(hardnet, name)
    model = builder(num_classes=7, in_chans=5, drop_rate=0.25)
    assert isinstance(model, HarDNet)
    assert (model.config.name, model.num_classes, model.in_chans) == (name, 7, 5)
    assert model.base[-1][2].p == 0.25
    assert model(torch.rand(2, 5, 64, 64)).shape == (2, 7)
    assert builder.__name__ == name
    wanted = {**inspect.signature(create_model).parameters, **inspect.signature(builder).parameters}
    wanted.pop("name")
    assert list(inspect.signature(builder).parameters) == [
        "pretrained",
        *(key for key in wanted if key != "pretrained"),
    ]
    assert all(keyword in builder.__doc__ for keyword in wanted)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: create_model("hardnet68d"), ValueError, r"no model 'hardnet68d'.*hardnet39ds, .*did you mean"),
        (lambda: create_model("HarDNet-85"), ValueError, "did you mean 'hardnet85'"),
        (lambda: create_model(None), ValueError, "no model None"),
        (lambda: list_weights("resnet50"), ValueError, "no model 'resnet50'; known: hardnet39ds, "),
        (lambda: get_weights("hardnet68", "imagenet1k_v1"), ValueError, "did you mean 'IMAGENET1K_V1'"),
        (lambda: get_weights("hardnet68", "IMAGENET1K_V2"), ValueError, "hardnet68 has no weights 'IMAGENET1K_V2'"),
        (lambda: create_model("hardnet68", weights="IMAGENET1K_V3"), ValueError, "known: IMAGENET1K_V1"),
        (lambda: create_model("hardnet68", weights="no/such.pth"), WeightsError, r"no/such\.pth: no such file"),
        (lambda: create_model("hardnet68", weights=3), TypeError, "tag, a record or the path of a file, got int"),
        (
            lambda: create_model("hardnet68", weights=CATALOG["hardnet85", "IMAGENET1K_V1"]),
            ValueError,
            "not for hardnet68",
        ),
        (lambda: create_model("hardnet68", classes=10), TypeError, "classes"),
        (lambda: hardnet.hardnet68(num_clases=10), TypeError, "num_clases"),
        (lambda: hardnet.hardnet68(True, weights="IMAGENET1K_V1"), ValueError, "one of the two"),
        (lambda: create_model("hardnet68", num_classes=-1), ValueError, "num_classes must be .* got -1"),
        (lambda: create_model("hardnet68", num_classes=2.0), ValueError, r"got 2\.0"),
        (lambda: create_model("hardnet68", num_classes=True), ValueError, "got True"),
        (lambda: create_model("hardnet68", in_chans=0), ValueError, "in_chans must be .* got 0"),
        (lambda: create_model("hardnet68", drop_rate=1.0), ValueError, r"drop_rate must lie in \[0, 1\), got 1\.0"),
        (lambda: hardnet.HarDNet("hardnet68"), TypeError, "takes a HarDNetConfig, got str; to build a model by name"),  # type: ignore[arg-type]
        (lambda: hardnet.HarDNetwork, AttributeError, "HarDNetwork"),
    ],
)
def test_what_is_wrong_is_said(call: object, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, **options: object) -> WeightsRecord:
    """Publish a golden checkpoint: a record with a true digest, its file in a mirror folder."""
    import hashlib

    file = tmp_path / f"{name}.pth"
    torch.save(golden_state(name), file)
    digest = Digest("sha256", hashlib.sha256(file.read_bytes()).hexdigest())
    record = WeightsRecord(
        model=name,
        tag="TEST",
        sources=(Source(f"https://example.invalid/{file.name}", digest, "a test"),),
        provenance="made by a test",
        top1_error=0.0,
        top5_error=0.0,
        reported_by="a test",
        **options,
    )
    monkeypatch.setenv("HARDNET_MIRROR", str(tmp_path))
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    monkeypatch.setitem(factory.CATALOG, (name, "TEST"), record)
    return record


def test_tag_record_and_file_give_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = published(tmp_path, monkeypatch, "hardnet39ds")
    x = torch.rand(1, 3, 64, 64)
    want = create_model("hardnet39ds")
    want.load_state_dict(golden_state("hardnet39ds"))
    logits = want.eval()(x)
    for weights in ("TEST", record, tmp_path / "hardnet39ds.pth", str(tmp_path / "hardnet39ds.pth")):
        model = create_model("hardnet39ds", weights=weights).eval()
        assert torch.equal(model(x), logits)
        assert model.weights_record == record  # a file that the catalogue knows by its digest is known as such


def test_pretrained_means_the_first_imagenet_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = published(tmp_path, monkeypatch, "hardnet39ds")
    monkeypatch.setitem(factory.CATALOG, ("hardnet39ds", "IMAGENET1K_V1"), record)
    model = hardnet.hardnet39ds(pretrained=True)
    assert torch.equal(model.state_dict()["base.0.conv.weight"], golden_state("hardnet39ds")["base.0.conv.weight"])


def test_another_number_of_classes_makes_the_head_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    published(tmp_path, monkeypatch, "hardnet39ds")
    with caplog.at_level(logging.INFO, "hardnet"):
        model = create_model("hardnet39ds", weights="TEST", num_classes=10)
    assert "1000 classes in the weights, 10 in the model: the head is new" in caplog.text
    golden = golden_state("hardnet39ds")
    state = model.state_dict()
    assert [key for key in golden if not torch.equal(golden[key], state[key])] == [
        "base.14.3.weight",
        "base.14.3.bias",
    ]
    assert state["base.14.3.weight"].std() > 0


def test_other_channels_adapt_the_stem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path, monkeypatch, "hardnet39ds")
    colour = create_model("hardnet39ds", weights="TEST").eval().double()
    grey = create_model("hardnet39ds", weights="TEST", in_chans=1).eval().double()
    six = create_model("hardnet39ds", weights="TEST", in_chans=6).eval().double()
    x = torch.rand(1, 1, 64, 64).double()
    torch.testing.assert_close(grey(x), colour(x.repeat(1, 3, 1, 1)), rtol=1e-5, atol=1e-5)
    picture = torch.rand(1, 3, 64, 64).double()
    torch.testing.assert_close(six(picture.repeat(1, 2, 1, 1)), colour(picture), rtol=1e-5, atol=1e-5)


def test_plain_relu_blocks_where_the_record_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path, monkeypatch, "hardnet85", block_activation="relu")
    model = create_model("hardnet85", weights="TEST")
    kinds = {index: type(module.relu) for index, module in enumerate(model.base) if hasattr(module, "relu")}
    assert set(kinds.values()) == {torch.nn.ReLU6}
    assert kinds.keys() >= {0, 1, 4, 7, 18}
    in_blocks = [m for i in (3, 6, 8, 11, 13, 16) for m in model.base[i].modules() if "ReLU" in type(m).__name__]
    assert len(in_blocks) == 76
    assert {type(module) for module in in_blocks} == {torch.nn.ReLU}


def test_weights_of_another_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path, monkeypatch, "hardnet39ds")
    with pytest.raises(WeightsError, match="is hardnet39ds TEST, it does not fit hardnet68"):
        create_model("hardnet68", weights=tmp_path / "hardnet39ds.pth")


def test_importing_is_light() -> None:
    code = (
        "import sys, torch\nbefore = set(sys.modules)\nimport hardnet\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new & {'torchvision', 'PIL', 'numpy', 'filelock', 'urllib', 'ssl', 'concurrent'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_the_public_names_are_all_there() -> None:
    assert all(getattr(hardnet, name) is not None for name in hardnet.__all__)
    assert set(hardnet.__all__) <= set(dir(hardnet))
