"""Every engine computes what the model computes, or its error says why it is not available."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import MODELS, Fill, same
from torch import Tensor, nn

from hardnet import Accelerated, Classifier, HarDNet, accelerate, create_model
from hardnet.engines import EngineCache, available_engines, base, choose_engine, onnx, openvino
from hardnet.engines.acceleration import cpu_has_bf16
from hardnet.engines.cache import artifacts_dir, fingerprint
from hardnet.images.preprocess import Preprocessing

SAMPLE = Path(__file__).parent.parent / "images" / "fashion_mnist" / "bag-00018.png"
SHAPES = [(1, 3, 64, 96), (3, 3, 33, 32), (0, 3, 64, 64), (1, 3, 224, 224), (3, 3, 65, 97)]
CASES = [
    pytest.param(engine, name, marks=[pytest.mark.slow] * (name != MODELS[0] or engine == "onnxruntime"))
    for engine in ("eager", "torch", "openvino", "onnxruntime")
    for name in MODELS
]
ACCELERATE = importlib.import_module("hardnet.engines.acceleration")  # the package has a function of this name


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_every_engine_has_the_logits_of_the_model(engine: str, name: str, golden_fill: Fill) -> None:
    """With parameters that saturate ReLU6."""
    model = golden_fill(create_model(name)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    example, normalise = torch.randn(SHAPES[0]), Preprocessing()
    fast = accelerate(model, engine=engine, example_input=example, threads=1, preprocessing=normalise)  # type: ignore[arg-type]
    assert isinstance(fast, Accelerated)
    assert fast.engine == engine
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            wanted = model(x)
        assert same(fast(x), wanted), shape
        assert same(fast(x.to(memory_format=torch.channels_last)), wanted), "channels last"
    pixels = torch.randint(256, SHAPES[0], dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert same(fast(pixels), fast(normalise.normalise(pixels))), "uint8"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("machine", "flags", "wanted"),
    [
        ("x86_64", {"avx2", "fma"}, True),
        ("x86_64", {"avx2", "avx_vnni"}, False),
        ("x86_64", {"avx512f", "avx512_vnni"}, False),
        ("AMD64", set(), True),
        ("aarch64", set(), False),
    ],
)
def test_processors_that_sum_in_16_bits(
    machine: str, flags: set[str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx.platform, "machine", lambda: machine)
    monkeypatch.setattr(onnx, "cpu_flags", lambda: frozenset(flags))
    assert onnx.cpu_sums_in_16_bits() is wanted


@pytest.mark.slow
def test_int8_weights_have_seven_bits_where_sums_would_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx as onnx_format

    model, x = create_model("hardnet39ds", weights="FASHION_MNIST").eval(), torch.randn(4, 3, 64, 64)
    largest = []
    for saturates in (False, True):
        monkeypatch.setattr(onnx, "cpu_sums_in_16_bits", lambda saturates=saturates: saturates)
        before = set(artifacts_dir().glob("*"))
        accelerate(model, engine="onnxruntime", precision="int8", calibration=[x])
        [made] = set(artifacts_dir().glob("*")) - before
        values = onnx_format.load(made / "model.onnx").graph.initializer
        weights = [onnx_format.numpy_helper.to_array(value) for value in values if len(value.dims) == 4]
        largest.append(max(abs(each.astype(int)).max() for each in weights if each.dtype == "int8"))
    assert largest == [127, 64]


@pytest.mark.slow
def test_int8_leaves_depthwise_convolutions_in_float_on_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = create_model("hardnet39ds", weights="FASHION_MNIST").eval(), torch.randn(4, 3, 64, 64)
    counts = []
    for amx in (False, True):
        monkeypatch.setattr(openvino, "cpu_has_amx_int8", lambda amx=amx: amx)
        before = set(artifacts_dir().glob("*"))
        found = accelerate(model, engine="openvino", precision="int8", calibration=[x])(x)
        assert isinstance(found, Tensor)
        with torch.no_grad():
            assert same(found, model(x), 0.2)
        [made] = set(artifacts_dir().glob("*")) - before
        operators = openvino.core().read_model(made / "model.xml").get_ops()
        depthwise = [op for op in operators if op.get_type_name() == "GroupConvolution"]
        counts.append(sum(op.input_value(0).get_node().get_type_name() == "FakeQuantize" for op in depthwise))
    assert counts[0] > 10
    assert counts[1] == 0
    plain = create_model("hardnet68").eval()  # without depthwise convolutions: nothing is to be left out
    assert accelerate(plain, engine="openvino", precision="int8", calibration=[x]).precision == "int8"


INTERRUPTED = """
import gc, signal, torch, hardnet

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for background jobs
engines = [hardnet.accelerate(hardnet.hardnet39ds().eval(), engine="openvino") for _ in range(2)]
while engines:  # the first one goes first
    engines.pop(0)
    gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
def test_ctrl_c_after_openvino() -> None:
    """Two runtimes of OpenVINO that are deleted in this order leave no valid stack for signal handlers."""
    command = [sys.executable, "-c", INTERRUPTED]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (result.returncode, result.stdout) == (0, "interrupted\n"), result.stderr


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])
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


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])
def test_half_precision_is_close_and_gives_single(engine: str) -> None:
    if not cpu_has_bf16():
        with pytest.raises(ValueError, match="does not compute in bf16"):
            accelerate(create_model("hardnet39ds"), engine="torch", precision="bf16")
        return
    model = create_model("hardnet39ds", weights="FASHION_MNIST").eval()
    x = torch.randn(2, 3, 64, 64)
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
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: None)
    assert accelerate(model).engine == "torch"
    assert "hardnet39ds runs in torch, fp32, on cpu" in caplog.text
    assert available_engines() == ["torch", "eager"]
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: name == "openvino" or None)
    assert ACCELERATE._plan("auto", "fp32", torch.device("cpu"), None).engine == "openvino"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"engine": "warp"}, ValueError, "no engine 'warp'; known: auto, eager, torch"),
        ({"precision": "fp8"}, ValueError, "no precision 'fp8'"),
        ({"engine": "torch", "precision": "int8"}, ValueError, "torch engine has no int8 on cpu, only fp32, bf16"),
        ({"engine": "openvino", "precision": "int8"}, ValueError, "int8 needs calibration="),
        ({"engine": "torch", "calibration": [torch.zeros(1, 3, 64, 64)]}, ValueError, "goes with precision='int8'"),
        ({"engine": "torch", "threads": 0}, ValueError, "threads must be .*, got 0"),
        ({"engine": "torch", "example_input": torch.zeros(1, 1, 64, 64)}, ValueError, r"got \(1, 1, 64, 64\)"),
    ],
)
def test_impossible_combinations_are_refused(options: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        accelerate(create_model("hardnet39ds"), **options)  # type: ignore[arg-type]


def test_missing_packages_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: None)
    model = create_model("hardnet39ds")
    with pytest.raises(ImportError, match=r'needs openvino for fp32: pip install openvino \(or, .*"\.\[openvino\]"\)'):
        accelerate(model, engine="openvino")
    with pytest.raises(
        ImportError, match=r'needs openvino, nncf for int8: pip install openvino nncf \(or, .*"\.\[int8\]"\)'
    ):
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


@pytest.mark.slow
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
    before = fingerprint(model, "openvino")
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    assert fingerprint(model, "openvino") != before


@pytest.mark.slow
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


def test_the_engine_follows_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("hardnet39ds")
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: name == "openvino" or None)
    wanted = {32: "eager", 33: "torch", 10_000: "torch", 10_001: "openvino", None: "openvino"}
    assert {count: choose_engine(model, images=count) for count in wanted} == wanted
    assert choose_engine(model, "bf16", 1) == "openvino"
    with torch.device("meta"):
        assert choose_engine(create_model("hardnet39ds"), images=5000) == "eager"  # not on the CPU
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: None)
    assert choose_engine(model) == "torch"


def test_engines_of_auto_are_built_once_and_fall_back_to_pytorch(
    monkeypatch: pytest.MonkeyPatch, golden_fill: Fill, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: name == "openvino" or None)
    model, x = golden_fill(create_model("hardnet39ds")).eval(), torch.randn(2, 3, 32, 32)
    built = []

    def build(model: HarDNet, engine: str, **options: object) -> Accelerated:
        built.append(engine)
        if engine == "openvino":
            raise RuntimeError("a library is missing")
        return accelerate(model, engine=engine, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ACCELERATE, "accelerate", build)
    cache = EngineCache(model)
    with torch.inference_mode():
        expected = model(x)
        for images, engine in ((2, "eager"), (33, "torch"), (None, "torch"), (10_001, "torch"), (2, "eager")):
            name, run = cache.for_images(images)
            assert name == engine
            assert same(run(x), expected)
    assert built == ["torch", "openvino"]
    assert caplog.text.count("the openvino engine is not available, using PyTorch instead") == 1


def test_labels_stay_when_the_engine_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: None)
    monkeypatch.setattr(ACCELERATE, "FEW", 12)
    options = {"weights": "FASHION_MNIST", "device": "cpu"}
    eager, auto = (Classifier("hardnet39ds", engine=engine, **options) for engine in ("eager", "auto"))  # type: ignore[arg-type]
    expected, results = (runner.predict(SAMPLE.parent, batch_size=8) for runner in (eager, auto))
    assert len(expected) > 12
    assert [result.top.label for result in results] == [result.top.label for result in expected]


@pytest.mark.parametrize("features_only", [False, True])
def test_large_batches_run_in_equal_slices(
    features_only: bool, golden_fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_SLICE_PIXELS", 5 * 64 * 64 + 1)
    model, sizes, x = (
        golden_fill(create_model("hardnet39ds", features_only=features_only)).eval(),
        [],
        torch.rand(9, 3, 64, 64),
    )
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    found, wanted = base.in_slices(model)(x), model(x)
    assert sizes == [5, 4, 9]
    pairs = zip(found, wanted, strict=True) if features_only else [(found, wanted)]
    assert all(same(one, other) for one, other in pairs)  # type: ignore[arg-type]


@pytest.mark.parametrize(("engine", "sizes"), [("eager", [9]), ("torch", [5, 4])])
def test_all_engines_but_eager_get_slices(engine: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    build = ACCELERATE.Engine(lambda *_: lambda x: found.append(len(x)) or x.sum((2, 3)), ("fp32",))
    monkeypatch.setattr(base, "_SLICE_PIXELS", 5 * 64 * 64 + 1)
    monkeypatch.setitem(ACCELERATE._TABLE, engine, build)
    x = torch.rand(9, 3, 64, 64)
    assert same(accelerate(create_model("hardnet39ds"), engine=engine)(x), x.sum((2, 3)))  # type: ignore[arg-type]
    assert found == sizes
