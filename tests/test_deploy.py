"""Engines: each computes what the model computes, or says why it is not to be had."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MODELS
from torch import Tensor, nn

import hardnet
from hardnet import Accelerated, Classifier, HarDNet, accelerate, create_model
from hardnet.engines import accelerate as engines
from hardnet.engines import fold
from hardnet.engines.cache import artifacts_dir
from hardnet.engines.merged import merge
from hardnet.engines.native import FusedConv
from hardnet.models.config import CONFIGS
from hardnet.models.layers import HarDBlock

SAMPLE = Path(__file__).parent.parent / "images" / "fashion_mnist" / "bag-00018.png"
SHAPES = [(1, 3, 224, 224), (3, 3, 65, 97), (2, 3, 33, 32), (0, 3, 64, 64)]
Fill = Callable[[nn.Module], nn.Module]


def same(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether shapes agree, and values to a share of the largest."""
    if found.shape != wanted.shape:
        return False
    return not len(wanted) or bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())


def check(engine: str, name: str, fill: Fill, shapes: list[tuple[int, ...]], **options: object) -> None:
    """Compare with the eager model, with parameters that saturate ReLU6."""
    model = fill(create_model(name)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast = accelerate(model, engine=engine, **options)  # type: ignore[arg-type]
    assert isinstance(fast, Accelerated)
    assert fast.engine == engine
    for shape in shapes:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            wanted = model(x)
        assert same(fast(x), wanted), shape
        assert same(fast(x.to(memory_format=torch.channels_last)), wanted), "channels last"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ["eager", "torch"])
def test_engines_of_torch(engine: str, name: str, golden_fill: Fill) -> None:
    check(engine, name, golden_fill, SHAPES, threads=1)


def test_openvino(golden_fill: Fill) -> None:
    check("openvino", "hardnet39ds", golden_fill, SHAPES)


INTERRUPTED = """
import gc, signal, torch, hardnet

engines = [hardnet.accelerate(hardnet.hardnet39ds().eval(), engine="openvino") for _ in range(2)]
while engines:  # the first one goes first
    engines.pop(0)
    gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_openvino() -> None:
    """Each runtime of OpenVINO changes the stack of signal handlers: deleted in this order, two left none."""
    command = [sys.executable, "-c", INTERRUPTED]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (result.returncode, result.stdout) == (0, "interrupted\n"), result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_converted_engines(engine: str, name: str, golden_fill: Fill) -> None:
    check(engine, name, golden_fill, SHAPES)


SMALLEST_FIRST = [
    pytest.param(name, marks=pytest.mark.slow if name == "hardnet39ds" else pytest.mark.slower) for name in MODELS
]


@pytest.mark.parametrize("name", SMALLEST_FIRST)
def test_inductor(name: str, golden_fill: Fill) -> None:
    check("inductor", name, golden_fill, SHAPES[:2])


@pytest.mark.slower
@pytest.mark.parametrize("name", [name for name in MODELS if name != "hardnet39ds"])
def test_packages_of_aotinductor(name: str, golden_fill: Fill) -> None:
    example = torch.zeros(1, 3, 64, 96)
    check("aoti", name, golden_fill, [(1, 3, 64, 96), (3, 3, 64, 96)], example_input=example)


@pytest.mark.slow
def test_a_package_of_aotinductor_is_compiled_once(golden_fill: Fill, caplog: pytest.LogCaptureFixture) -> None:
    example = torch.zeros(1, 3, 64, 96)
    check("aoti", "hardnet39ds", golden_fill, [(1, 3, 64, 96), (3, 3, 64, 96)], example_input=example)
    [kept] = artifacts_dir().iterdir()
    written = (kept / "model.pt2").stat().st_mtime_ns
    check("aoti", "hardnet39ds", golden_fill, [(2, 3, 64, 96)], example_input=example)
    assert (kept / "model.pt2").stat().st_mtime_ns == written
    model = golden_fill(create_model("hardnet39ds"))
    assert isinstance(model, HarDNet)
    with pytest.raises(ValueError, match="compiled for images of 64x96"):
        accelerate(model, engine="aoti", example_input=example)(torch.zeros(1, 3, 96, 96))


def test_folding_keeps_the_function_and_the_original(golden_fill: Fill) -> None:
    model = golden_fill(create_model("hardnet68ds")).eval()
    folded = fold(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert same(folded(x), model(x))


@pytest.mark.parametrize("name", ["hardnet39ds", "hardnet68"])
@pytest.mark.parametrize("kind", ["classifier", "with ReLU", "dilated pyramid"])
def test_blocks_without_concatenation_compute_the_same(kind: str, name: str, golden_fill: Fill) -> None:
    model: nn.Module = create_model(name)
    if kind == "with ReLU":
        model = HarDNet(replace(CONFIGS[name], block_activation="relu"))
    elif kind == "dilated pyramid":
        model = create_model(name, output_stride=8, features_only=True)
    folded = fold(golden_fill(model).eval())  # type: ignore[arg-type]
    merged = merge(copy.deepcopy(folded))
    assert not any(isinstance(module, HarDBlock) for module in merged.modules())
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found, wanted = merged(x), folded(x)
    pairs = zip(found, wanted, strict=True) if isinstance(wanted, list) else [(found, wanted)]
    assert all(same(ours, theirs) for ours, theirs in pairs)


def test_convolutions_are_fused_where_torch_can() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    from hardnet.engines.native import fuse

    fused = fuse(fold(create_model("hardnet39ds")))
    assert not any(isinstance(module, (nn.Conv2d, nn.ReLU6)) for module in fused.modules())
    assert sum(isinstance(module, FusedConv) for module in fused.modules()) > 50


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_feature_pyramids(engine: str, golden_fill: Fill) -> None:
    model = golden_fill(create_model("hardnet39ds", features_only=True, output_stride=16)).eval()
    fast = accelerate(model, engine=engine)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        wanted = model(x)
    found = fast(x)
    assert isinstance(found, list)
    assert len(found) == len(wanted) == 4
    assert all(same(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))
    assert fast.feature_info == model.feature_info


def test_half_precision_is_close_and_gives_single() -> None:
    if not engines._cpu_has_bf16():
        with pytest.raises(ValueError, match="does not compute in bf16"):
            accelerate(create_model("hardnet39ds"), engine="torch", precision="bf16")
        return
    model = create_model("hardnet39ds", weights="FASHION_MNIST").eval()
    x = torch.randn(2, 3, 64, 64)
    for engine in ("torch", "openvino"):
        found = accelerate(model, engine=engine, precision="bf16")(x)
        assert isinstance(found, Tensor)
        assert found.dtype == torch.float32
        with torch.no_grad():
            assert not same(found, model(x), 1e-5)  # it was in fact computed in bf16
            assert same(found, model(x), 0.05)


def test_auto_takes_the_preferred_one_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="hardnet")
    model = create_model("hardnet39ds")
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert accelerate(model).engine == "torch"
    assert "hardnet39ds runs in torch, fp32, on cpu" in caplog.text
    assert engines.available_engines() == ["torch", "eager", "inductor", "aoti"]
    monkeypatch.setattr(engines, "find_spec", lambda name: name == "openvino" or None)
    assert engines._plan("auto", "fp32", torch.device("cpu"), None).engine == "openvino"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"engine": "warp"}, ValueError, "no engine 'warp'; known: auto, eager, torch"),
        ({"precision": "fp8"}, ValueError, "no precision 'fp8'"),
        ({"engine": "torch", "precision": "int8"}, ValueError, "torch engine has no int8 on cpu, only fp32, bf16"),
        ({"engine": "openvino", "precision": "int8"}, ValueError, "int8 needs calibration="),
        ({"engine": "torch", "calibration": [torch.zeros(1, 3, 64, 64)]}, ValueError, "goes with precision='int8'"),
        ({"engine": "torch", "threads": 0}, ValueError, "threads must be a whole number from 1 up, got 0"),
        ({"engine": "aoti"}, ValueError, "example_input= must tell the shape"),
        ({"engine": "torch", "example_input": torch.zeros(1, 1, 64, 64)}, ValueError, r"got \(1, 1, 64, 64\)"),
    ],
)
def test_what_cannot_be_had_is_refused(options: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        accelerate(create_model("hardnet39ds"), **options)  # type: ignore[arg-type]


def test_missing_packages_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    model = create_model("hardnet39ds")
    with pytest.raises(ImportError, match=r'needs openvino for fp32: pip install "hardnet\[openvino\]"'):
        accelerate(model, engine="openvino")
    with pytest.raises(ImportError, match=r'needs openvino, nncf for int8: pip install "hardnet\[int8\]"'):
        accelerate(model, precision="int8", calibration=[torch.zeros(1, 3, 64, 64)])
    with pytest.raises(TypeError, match="only models of this library"):
        accelerate(nn.Linear(1, 1))  # type: ignore[arg-type]


def test_an_accelerated_model_is_for_evaluation_and_checks_its_input() -> None:
    fast = accelerate(create_model("hardnet39ds"), engine="torch")
    assert not list(fast.parameters())
    with pytest.raises(RuntimeError, match="for evaluation only"):
        fast.train()
    assert fast.eval() is fast
    for x, said in (
        (torch.zeros(3, 64, 64), "add the batch dimension"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.float64), "takes float32 images"),
        (torch.zeros(1, 3, 64, 64, device="meta"), "the images are on meta"),
    ):
        with pytest.raises(ValueError, match=said):
            fast(x)


def test_a_conversion_is_kept_and_a_damaged_one_is_made_anew(caplog: pytest.LogCaptureFixture) -> None:
    model = create_model("hardnet39ds", weights="FASHION_MNIST").eval()
    x = torch.randn(1, 3, 64, 64)
    wanted = accelerate(model, engine="openvino")(x)
    assert isinstance(wanted, Tensor)
    [kept] = artifacts_dir().iterdir()
    made = (kept / "model.xml").stat().st_mtime_ns
    accelerate(model, engine="openvino")
    assert (kept / "model.xml").stat().st_mtime_ns == made
    (kept / "model.xml").write_bytes(b"<net")
    again = accelerate(model, engine="openvino")(x)
    assert isinstance(again, Tensor)
    assert same(again, wanted, 1e-6)
    assert "cannot be used" in caplog.text
    assert [path.name for path in artifacts_dir().iterdir()] == [kept.name]
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    accelerate(model, engine="openvino")
    assert len(list(artifacts_dir().iterdir())) == 2  # other weights, another conversion


def test_where_nothing_can_be_kept_it_works_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    model = create_model("hardnet39ds").eval()
    x = torch.randn(1, 3, 64, 64)
    found = accelerate(model, engine="openvino")(x)
    assert isinstance(found, Tensor)
    with torch.no_grad():
        assert same(found, model(x))
    assert "the converted model is not kept" in caplog.text


def test_the_classifier_takes_an_engine() -> None:
    eager = Classifier("hardnet39ds", weights="FASHION_MNIST", device="cpu")
    fast = Classifier("hardnet39ds", weights="FASHION_MNIST", device="cpu", engine="torch")
    assert isinstance(fast.model, hardnet.Accelerated)
    [wanted], [found] = eager.predict(SAMPLE), fast.predict(SAMPLE)
    assert found.top.label == wanted.top.label == "Bag"
    assert found.top.probability == pytest.approx(wanted.top.probability, rel=1e-4)
