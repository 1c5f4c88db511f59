"""Files made elsewhere: unwrapped, renamed, adapted, or refused with a reason and without a trace."""

from __future__ import annotations

import io
import pickle
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import MODELS, golden_input, golden_state, golden_value
from torch import Tensor

from hardnet import WeightsError, create_model
from hardnet.models.config import CONFIGS
from hardnet.weights.checkpoint import adapt_stem, imgclsmob_key, parse_checkpoint, rename_imgclsmob

NAME = "hardnet39ds"
CONFIG = CONFIGS[NAME]
STATE = golden_state(NAME)


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert list(got) == list(want)
    assert all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3, "best": 0.5},
        {"model": STATE, "optimizer": {"lr": 0.1}},
        {"model_state": STATE, "arch": "hardnet"},
        {"state_dict": {f"module.{key}": value for key, value in STATE.items()}},
        {f"_orig_mod.module.{key}": value for key, value in STATE.items()},
        {"model": "hardnet39ds", "state_dict": STATE},
    ],
    ids=["raw", "state_dict", "model", "model_state", "module.", "_orig_mod.module.", "a name under model"],
)
def test_wrapped_state_dicts_are_unwrapped(content: object) -> None:
    assert_same(parse_checkpoint(saved(content), "x.pth", CONFIG), STATE)


def test_the_legacy_format_is_read() -> None:
    buffer = io.BytesIO()
    torch.save(STATE, buffer, _use_new_zipfile_serialization=False)
    assert_same(parse_checkpoint(buffer.getvalue(), "x.pth", CONFIG), STATE)


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(STATE, tmp_path / "x.safetensors")
    model = create_model(NAME, weights=tmp_path / "x.safetensors")
    assert_same(dict(model.state_dict()), STATE)
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        parse_checkpoint(b"\x10\0\0\0\0\0\0\0{broken", "y.safetensors", CONFIG)


def test_a_missing_safetensors_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'pip install "hardnet\[safetensors\]"'):
        parse_checkpoint(b"", "x.safetensors", CONFIG)


@pytest.mark.parametrize("name", MODELS)
def test_imgclsmob_names_are_a_bijection(name: str) -> None:
    pytorchcv = pytest.importorskip("pytorchcv.model_provider", reason="the test extra installs pytorchcv")
    config = CONFIGS[name]
    theirs = pytorchcv.get_model(name).state_dict()
    ours = create_model(name).state_dict()
    assert [imgclsmob_key(key, config) for key in ours] == list(theirs)
    renamed = rename_imgclsmob(theirs, config)
    assert [(key, value.shape) for key, value in renamed.items()] == [(key, value.shape) for key, value in ours.items()]
    assert all(renamed[key] is theirs[imgclsmob_key(key, config)] for key in ours)


@pytest.mark.parametrize("name", ["hardnet39ds", "hardnet68ds"])
def test_a_renamed_state_dict_computes_what_imgclsmobs_model_does(name: str, tmp_path: Path) -> None:
    """Only where its activations are the original's: in 68 and 85 its blocks use plain ReLU."""
    pytorchcv = pytest.importorskip("pytorchcv.model_provider", reason="the test extra installs pytorchcv")
    theirs = pytorchcv.get_model(name).eval()
    theirs.load_state_dict({key: golden_value(key, tuple(v.shape)) for key, v in theirs.state_dict().items()})
    file = tmp_path / f"{name}.pth"
    torch.save(theirs.state_dict(), file)
    archive = tmp_path / f"{name}.pth.zip"
    with zipfile.ZipFile(archive, "w") as writer:
        writer.write(file, file.name)
    x = golden_input(3, (2, 3, 224, 224))
    with torch.inference_mode():
        want = theirs(x)
        for path in (file, archive):
            got = create_model(name, weights=path).eval()(x)
            assert (got - want).abs().max() <= 2e-6 * want.abs().max()


@pytest.mark.parametrize("name", ["hardnet68", "hardnet85"])
def test_plain_relu_blocks_are_imgclsmobs(name: str) -> None:
    """With plain ReLU inside the blocks, as the catalogue has hardnet85's V2, the two agree here as well."""
    import dataclasses

    from hardnet import HarDNet

    pytorchcv = pytest.importorskip("pytorchcv.model_provider", reason="the test extra installs pytorchcv")
    theirs = pytorchcv.get_model(name).eval()
    theirs.load_state_dict({key: golden_value(key, tuple(v.shape)) for key, v in theirs.state_dict().items()})
    ours = HarDNet(dataclasses.replace(CONFIGS[name], block_activation="relu")).eval()
    ours.load_state_dict(rename_imgclsmob(theirs.state_dict(), CONFIGS[name]))
    x = golden_input(3, (1, 3, 224, 224))
    with torch.inference_mode():
        want = theirs(x)
        assert (ours(x) - want).abs().max() <= 1e-5 * want.abs().max()


def test_adapted_stems_by_hand() -> None:
    weight = torch.arange(6.0).reshape(2, 3, 1, 1)
    assert adapt_stem(weight, 1).flatten().tolist() == [3, 12]
    assert adapt_stem(weight, 2).flatten().tolist() == [0, 1.5, 4.5, 6]
    assert adapt_stem(weight, 4).flatten().tolist() == [0, 0.75, 1.5, 0, 2.25, 3, 3.75, 2.25]


class Gadget:
    """A pickle that would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return subprocess.call, (["touch", str(self.path)],)


def without(key: str) -> dict[str, Tensor]:
    return {name: value for name, value in STATE.items() if name != key}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"<!DOCTYPE html><html><body>Domain expired</body></html>", "is an HTML page, not a checkpoint"),
        (b"\x80\x02not a pickle", "cannot be read"),
        (saved(STATE)[:-5000], "cannot be read"),
        (saved([1, 2, 3]), "holds an object of type list"),
        (saved({}), "is empty"),
        (saved({"epoch": 3, "net": STATE}), "has the entries epoch, net; a state dict.*'state_dict'"),
        (saved(without("base.0.norm.bias")), r"does not fit hardnet39ds: 1 missing keys \(base\.0\.norm\.bias\)"),
        (saved({**STATE, "extra.weight": torch.zeros(1)}), r"1 unknown keys \(extra\.weight\)"),
        (
            saved({**STATE, "base.0.norm.bias": torch.zeros(5)}),
            r"1 other shapes \(base\.0\.norm\.bias \(5,\) in the file, \(24,\) in the model\)",
        ),
        (saved({**STATE, "base.0.norm.bias": torch.full((24,), float("nan"))}), r"NaN .* in base\.0\.norm\.bias"),
        (saved(golden_state("hardnet68ds")), "does not fit hardnet39ds.*looks like a checkpoint of hardnet68ds"),
        (
            saved({"features.init_block.conv1.conv.weight": torch.zeros(1)}),
            "does not fit hardnet39ds: 445 missing keys",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "some.pth"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=said) as caught:
        create_model(NAME, weights=file)
    assert str(file) in str(caught.value)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    for protocol in (0, 2, 4):
        raw = pickle.dumps({"state_dict": Gadget(trace)}, protocol=protocol)
        for content in (raw, saved({"state_dict": Gadget(trace)}), saved({**STATE, "x": Gadget(trace)})):
            with pytest.raises(WeightsError, match="cannot be read"):
                parse_checkpoint(content, "x.pth", CONFIG)
    assert not trace.exists()


def test_a_refused_state_leaves_the_model_as_it_was() -> None:
    from hardnet.weights.checkpoint import load_state

    model = create_model(NAME)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError):
        load_state(model, {**STATE, "base.14.3.bias": torch.zeros(3)}, "x")
    assert_same(dict(model.state_dict()), before)


def test_a_checkpoint_brings_its_own_number_of_classes(tmp_path: Path) -> None:
    file = tmp_path / "ten.pth"
    torch.save(create_model(NAME, num_classes=10).state_dict(), file)
    assert create_model(NAME, weights=file).num_classes == 10
    assert create_model(NAME, weights=file, num_classes=3).num_classes == 3


def test_unreadable_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read: Is a directory"):
        create_model(NAME, weights=tmp_path)
