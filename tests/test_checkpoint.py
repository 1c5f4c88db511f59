"""Checkpoint files: unwrapped, renamed, adapted, or refused with a reason; no code from them runs."""

import argparse
import io
import logging
import pickle
import random
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MODELS, Fill, golden_input, golden_state, same
from torch import Tensor

from hardnet import HarDNet, WeightsError, create_model
from hardnet.models.config import CONFIGS, Activation, HarDNetConfig
from hardnet.weights.files import deserialise
from hardnet.weights.state_dict import adapt_stem, find_state, imgclsmob_key, load_state, rename_imgclsmob

NAME = "hardnet39ds"
CONFIG = CONFIGS[NAME]
STATE = golden_state(NAME)
HEAD = "base.14.3."
TINY = HarDNetConfig(
    name="tiny", stem_channels=(2, 2), block_layers=(2,), growth_rates=(2,), growth_multiplier=1.5,
    transition_channels=(4,), downsample=(False,), depthwise=True, drop_rate=0.0,
)  # fmt: skip
PREPROCESSING = {"resize": 40, "crop": 32, "mean": [0.1, 0.2, 0.3], "std": [1, 0.5, 0.25]}


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in STATE.items()}


def parse(content: bytes, origin: str = "x.pth", config: HarDNetConfig = CONFIG) -> dict[str, Tensor]:
    return rename_imgclsmob(find_state(deserialise(content, origin)), config)


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert list(got) == list(want)
    assert all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3, "best": 0.5},
        {"model": STATE, "optimizer": {"lr": 0.1}},
        prefixed("_orig_mod.module."),
        {"model": "hardnet39ds", "state_dict": STATE},
        {"n_averaged": torch.tensor(3), **prefixed("module.")},
        {"model_state_dict": STATE, "epoch": 3},
        {"params": STATE, "optimizer": {"state": {}}},
        {"state_dict": prefixed("net.backbone.")},
    ],
    ids=[
        "raw", "state_dict", "model", "_orig_mod.module.", "a name under model", "averaged model", "PyTorch's tutorial",
        "only state dict", "two prefixes",
    ],
)  # fmt: skip
def test_wrapped_state_dicts_are_unwrapped(content: object) -> None:
    assert_same(parse(saved(content)), STATE)


def test_missing_counters_of_batches_are_zero(tmp_path: Path) -> None:
    """As in files of PyTorch before 0.4.1 and of frozen normalisation."""
    torch.save({key: value for key, value in STATE.items() if not key.endswith("num_batches_tracked")}, tmp_path / "x")
    assert_same(dict(create_model(NAME, weights=tmp_path / "x").state_dict()), STATE)


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(STATE, tmp_path / "x.safetensors")
    model = create_model(NAME, weights=tmp_path / "x.safetensors")
    assert_same(dict(model.state_dict()), STATE)
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        parse(b"\x10\0\0\0\0\0\0\0{broken", "y.safetensors")


def test_a_missing_safetensors_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torch.hub this library is not an installed package: pip must be told what is on the index."""
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'pip install "safetensors>=[0-9.]+"$'):
        parse(b"", "x.safetensors")


def test_averaged_weights_are_taken_unless_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw, averaged = ({**STATE, "base.0.norm.bias": torch.full((24,), value)} for value in (1.0, 2.0))
    file = tmp_path / "x.pth"
    for entry, ema in (("state_dict_ema", averaged), ("model_ema", averaged)):
        torch.save({"state_dict": raw, entry: ema}, file)
        with caplog.at_level(logging.INFO, "hardnet"):
            assert create_model(NAME, weights=file).state_dict()["base.0.norm.bias"][0] == 2
        assert f"weights of the entry '{entry}'" in caplog.text
        assert create_model(NAME, weights=file, use_ema=False).state_dict()["base.0.norm.bias"][0] == 1
    torch.save({"state_dict": raw, "state_dict_ema": None}, file)
    assert create_model(NAME, weights=file).state_dict()["base.0.norm.bias"][0] == 1


def test_checkpoints_of_timms_training_script_are_read() -> None:
    content = {"epoch": 3, "arch": NAME, "state_dict": STATE, "version": 2, "args": argparse.Namespace(lr=0.1)}
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=new)
        assert_same(parse(buffer.getvalue()), STATE)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_an_object_that_is_not_read_is_named() -> None:
    with pytest.raises(WeightsError, match=r"GLOBAL fractions\.Fraction was not an allowed global") as caught:
        parse(saved({"state_dict": STATE, "x": __import__("fractions").Fraction(1, 2)}))
    assert "\x1b" not in str(caught.value)
    assert "allowlist this global" in str(caught.value)  # torch's reason is whole


@pytest.mark.parametrize("name", MODELS)
def test_imgclsmob_names_are_a_bijection(name: str) -> None:
    pytorchcv = pytest.importorskip("pytorchcv.model_provider", reason="the test extra installs pytorchcv")
    config = CONFIGS[name]
    with torch.device("meta"):
        theirs, ours = pytorchcv.get_model(name).state_dict(), create_model(name).state_dict()
    assert [imgclsmob_key(key, config) for key in ours] == list(theirs)
    renamed = rename_imgclsmob(theirs, config)
    assert [(key, value.shape) for key, value in renamed.items()] == [(key, value.shape) for key, value in ours.items()]
    assert all(renamed[key] is theirs[imgclsmob_key(key, config)] for key in ours)


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("hardnet39ds", "relu6"),
        ("hardnet68ds", "relu6"),
        ("hardnet68", "relu"),  # in 68 and 85 imgclsmob has plain ReLU inside the blocks
        pytest.param("hardnet85", "relu", marks=pytest.mark.slow),
    ],
)
def test_a_renamed_state_dict_computes_what_imgclsmobs_model_does(
    name: str, activation: Activation, golden_fill: Fill
) -> None:
    pytorchcv = pytest.importorskip("pytorchcv.model_provider", reason="the test extra installs pytorchcv")
    theirs = golden_fill(pytorchcv.get_model(name)).eval()
    ours = HarDNet(replace(CONFIGS[name], block_activation=activation)).eval()
    ours.load_state_dict(rename_imgclsmob(theirs.state_dict(), CONFIGS[name]))
    x = golden_input(3, (1, 3, 224, 224))
    with torch.inference_mode():
        assert same(ours(x), theirs(x), 1e-5)


def test_a_release_archive_of_imgclsmob_is_read(tmp_path: Path) -> None:
    names = {imgclsmob_key(key, CONFIG): value for key, value in STATE.items()}
    archive = tmp_path / "x.pth.zip"
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("x.pth", saved(names))
    assert_same(dict(create_model(NAME, weights=archive).state_dict()), STATE)


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
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"<!DOCTYPE html><html><body>Domain expired</body></html>", "is an HTML page, not a checkpoint"),
        (saved(STATE)[:-5000], "cannot be read"),
        (saved([1, 2, 3]), "holds an object of type list"),
        (saved({}), "is empty"),
        (saved({"generator": STATE, "critic": STATE}), "has several state dicts, under generator, critic"),
        (saved(prefixed("backbone.") | {"head.weight": torch.ones(2)}), r"outside the network, .* \(head\.weight\)"),
        (saved({"epoch": 3, "net": {"x": 1}}), "has the entries epoch, net; expected a state dict.*'state_dict'"),
        (saved(without("base.0.norm.bias")), r"does not fit hardnet39ds: 1 missing keys \(base\.0\.norm\.bias\)"),
        (saved({**STATE, "extra.weight": torch.zeros(1)}), r"1 unknown keys \(extra\.weight\)"),
        (
            saved({**STATE, "base.0.norm.bias": torch.zeros(5)}),
            r"1 other shapes \(base\.0\.norm\.bias \(5,\) in the file, \(24,\) in the model\)",
        ),
        (saved({**STATE, "base.0.norm.bias": torch.full((24,), float("nan"))}), r"NaN.* in base\.0\.norm\.bias"),
        (
            saved({**STATE, "base.0.norm.bias": torch.full((24,), 1e200, dtype=torch.float64)}),
            r"too large for torch\.float32 in",
        ),
        (saved({**STATE, "base.0.norm.running_var": torch.full((24,), -1.0)}), r"negative variances .*running_var"),
        (saved({**STATE, HEAD + "weight": torch.zeros(0, 1000), HEAD + "bias": torch.zeros(0)}), "head with 0 classes"),
        (saved({**STATE, "base.0.norm.bias": torch.zeros(24, device="meta")}), "1 other types .* on meta"),
        (saved({**STATE, "base.0.norm.bias": torch.zeros(24).to_sparse()}), "1 other types .*sparse_coo"),
        (saved({**STATE, "base.0.norm.bias": torch.zeros(24, dtype=torch.int8)}), "1 other types"),
        (saved(golden_state("hardnet68ds")), "does not fit hardnet39ds.*looks like a checkpoint of hardnet68ds"),
        (
            saved({"features.init_block.conv1.conv.weight": torch.zeros(1)}),
            "does not fit hardnet39ds: 371 missing keys",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "some.pth"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        create_model(NAME, weights=file)
    assert str(file) in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    for protocol in (0, 2, 4):
        raw = pickle.dumps({"state_dict": Gadget(trace)}, protocol=protocol)
        for content in (raw, saved({"state_dict": Gadget(trace)}), saved({**STATE, "x": Gadget(trace)})):
            with pytest.raises(WeightsError, match="cannot be read"):
                parse(content)
    for module, name in (("os", "system"), ("builtins", "exec"), ("builtins", "getattr"), ("argparse", "FileType")):
        with pytest.raises(WeightsError, match="cannot be read"):
            parse(f"\x80\x02c{module}\n{name}\nX\x04\0\0\0true\x85R.".encode("latin-1"))
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("times", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_damaged_file_is_refused_or_gives_finite_weights(times: int) -> None:
    from safetensors.torch import save

    model = HarDNet(TINY, num_classes=2)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    legacy = io.BytesIO()
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    files = ((saved(state), "x.pth"), (legacy.getvalue(), "x.pth"), (save(state), "x.safetensors"))
    rng, refused = random.Random(3), 0  # noqa: S311  test data
    for number in range(times):
        content, origin = files[number % 3]
        changed = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        del changed[rng.choice((len(changed), rng.randrange(len(changed)))) :]
        try:
            load_state(model, parse(bytes(changed), origin, TINY))
        except WeightsError:
            refused += 1
            assert_same(dict(model.state_dict()), state)
        else:
            assert all(value.isfinite().all() for value in model.state_dict().values())
            model.load_state_dict(state)
    assert refused > times // 3


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"classes": "cat"}, "must be a list of names"),
        ({"classes": ["cat", 3]}, "must be a list of names"),
        ({"classes": ["cat", " "]}, "must be a list of names"),
        ({"preprocessing": []}, '"preprocessing" is not valid'),
        ({"preprocessing": PREPROCESSING | {"resize": 31}}, '"preprocessing" is not valid'),
        ({"preprocessing": PREPROCESSING | {"mean": "abc"}}, '"preprocessing" is not valid'),
        ({"preprocessing": PREPROCESSING | {"std": None}}, '"preprocessing" is not valid'),
    ],
)
def test_invalid_classes_and_preprocessing_are_refused(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"model": STATE, "classes": ["cat", "dog"], "preprocessing": PREPROCESSING} | entries, path)
    with pytest.raises(WeightsError, match=message) as caught:
        create_model(NAME, weights=path)
    assert str(caught.value).startswith(str(path))
