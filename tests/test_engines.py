"""Every engine computes what the model computes, or its error says why it is not available."""

import copy
import importlib
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import MODELS, Fill, same, small_model
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.ops import FrozenBatchNorm2d

from hardnet import Classifier, HarDNet, accelerate, create_model
from hardnet.engines import EngineCache, available_engines, base, cache, choose_engine, openvino
from hardnet.engines.acceleration import cpu_has_bf16
from hardnet.engines.cache import artifacts_dir, digest_of, from_artifact
from hardnet.engines.calibration import check_agreement
from hardnet.images.preprocess import Preprocessing
from hardnet.models.layers import ConvLayer

SAMPLE = Path(__file__).parent.parent / "images" / "fashion_mnist" / "bag-00018.png"
SHAPES = [(1, 3, 64, 96), (3, 3, 33, 32), (0, 3, 64, 64), (1, 3, 224, 224), (3, 3, 65, 97)]
CASES = [
    pytest.param(engine, name, marks=[pytest.mark.slow] * (name != MODELS[0] or engine == "onnxruntime"))
    for engine in ("eager", "torch", "openvino", "onnxruntime")
    for name in MODELS
]
ENGINES = ["torch", *(pytest.param(engine, marks=pytest.mark.slow) for engine in ("openvino", "onnxruntime"))]
ACCELERATE = importlib.import_module("hardnet.engines.acceleration")  # the package has a function of this name


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_every_engine_has_the_logits_of_the_model(engine: str, name: str, golden_fill: Fill) -> None:
    """With parameters that saturate ReLU6."""
    model = golden_fill(create_model(name)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    example, normalise = torch.randn(SHAPES[0]), Preprocessing()
    fast = accelerate(model, engine=engine, example_input=example, threads=1, preprocessing=normalise)
    assert fast.engine == engine
    for shape in SHAPES:
        x = torch.randn(shape)
        with torch.no_grad():
            expected = model(x)
        assert same(fast(x), expected), shape
        assert same(fast(x.to(memory_format=torch.channels_last)), expected), "channels last"
    pixels = torch.randint(256, SHAPES[0], dtype=torch.uint8)
    assert same(fast(pixels), fast(normalise.normalise(pixels))), "uint8"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def _int8_folder(engine: str, x: Tensor) -> Path:
    """Convert a model to int8, check what it computes, and return the folder of the conversion."""
    model, before = create_model("hardnet39ds", weights="FASHION_MNIST").eval(), set(artifacts_dir().glob("*"))
    logits = accelerate(model, engine=engine, precision="int8", calibration=[x])(x)
    with torch.no_grad():
        assert same(logits, model(x), 0.2)
    [folder] = set(artifacts_dir().glob("*")) - before
    return folder


@pytest.mark.slow
def test_int8_weights_of_onnx_runtime_have_seven_bits() -> None:
    """Processors without VNNI sum products in 16 bits, which more bits would saturate."""
    import onnx as onnx_format

    model = onnx_format.load(_int8_folder("onnxruntime", torch.randn(4, 3, 64, 64)) / "model.onnx")
    weights = [onnx_format.numpy_helper.to_array(value) for value in model.graph.initializer if len(value.dims) == 4]
    assert max(abs(values.astype(int)).max() for values in weights if values.dtype == "int8") == 64


@pytest.mark.slow
def test_int8_leaves_depthwise_convolutions_in_float_on_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, x = [], torch.randn(4, 3, 64, 64)
    for amx in (False, True):
        monkeypatch.setattr(openvino, "cpu_has_amx_int8", lambda amx=amx: amx)
        operators = openvino.core().read_model(_int8_folder("openvino", x) / "model.xml").get_ops()
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
signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.slow
def test_ctrl_c_after_openvino() -> None:
    """Two runtimes of OpenVINO that are deleted in this order leave no valid stack for signal handlers."""
    result = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=300)
    assert result.stderr.splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])
def test_feature_pyramids(engine: str, golden_fill: Fill) -> None:
    model = golden_fill(create_model("hardnet39ds", features_only=True, output_stride=16)).eval()
    fast, x = accelerate(model, engine=engine), torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        assert [same(*pair) for pair in zip(fast(x), model(x), strict=True)] == [True] * 4
    assert fast.feature_info == model.feature_info


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])
def test_half_precision_is_close_and_gives_single(engine: str) -> None:
    if not cpu_has_bf16():
        pytest.skip("this processor does not compute in bf16")
    model, x = create_model("hardnet39ds", weights="FASHION_MNIST").eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits, expected = accelerate(model, engine=engine, precision="bf16")(x), model(x)
    assert logits.dtype == torch.float32
    assert not same(logits, expected, 1e-5)  # it was in fact computed in bf16
    assert same(logits, expected, 0.05)


def test_auto_takes_the_preferred_one_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="hardnet")
    model = create_model("hardnet39ds")
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: None)
    assert accelerate(model).engine == "torch"
    assert "hardnet39ds runs in torch, fp32, on cpu" in caplog.text
    assert available_engines() == ["torch", "eager"]
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: name == "openvino")
    assert available_engines() == ["openvino", "torch", "eager"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "warp"}, "unknown engine 'warp'; known: auto, eager, torch"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"engine": "torch", "precision": "int8"}, "engine 'torch' does not compute in int8 on cpu"),
        ({"precision": "fp16"}, "no engine computes in fp16 on cpu"),
        ({"engine": "torch", "precision": "bf16"}, "bf16 on the CPU takes Linux"),
        (
            {"engine": "torch", "calibration": [torch.zeros(1, 3, 64, 64)]},
            "precision='int8' and calibration= go together",
        ),
        ({"engine": "torch", "threads": 0}, "threads must be .*, got 0"),
        ({"engine": "torch", "example_input": torch.zeros(1, 1, 64, 64)}, r"got \(1, 1, 64, 64\)"),
    ],
)
def test_impossible_combinations_are_refused(
    options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ACCELERATE, "cpu_flags", frozenset)
    with pytest.raises(ValueError, match=message):
        accelerate(create_model("hardnet39ds"), **options)


def test_missing_packages_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    model, options = create_model("hardnet39ds"), {"precision": "int8", "calibration": [torch.zeros(1, 3, 64, 64)]}
    for engine, keywords in (("openvino", {}), ("onnxruntime", options), ("auto", options)):
        with pytest.raises(ImportError, match=r'is not installed, .* pip install "o.*" \(or, .*"\.\[o.*\]"\)'):
            accelerate(model, engine=engine, **keywords)
    with pytest.raises(TypeError, match="only models of this library"):
        accelerate(nn.Linear(1, 1))


@pytest.mark.parametrize("engine", ["eager", "torch", "openvino", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_images_that_are_no_numbers_get_no_answer(engine: str) -> None:
    model, x = small_model(), torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
    x[1, 0, 5, 5], x[3, 2, 0, 0] = float("nan"), -float("inf")
    logits = accelerate(model, engine=engine)(x)
    assert logits.isnan().all(1).tolist() == [False, True, False, True]
    assert same(logits[::2], expected[::2])


def _replace_norms(model: HarDNet, make: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    for layer in model.modules():
        if isinstance(getattr(layer, "norm", None), nn.BatchNorm2d):
            state = layer.norm.state_dict()
            layer.norm = make(layer.norm)
            layer.norm.load_state_dict(state, strict=False)


def _fused(model: HarDNet) -> None:
    for layer in model.modules():
        if isinstance(layer, ConvLayer):
            layer.conv, layer.norm = fuse_conv_bn_eval(layer.conv, layer.norm), nn.Identity()


def _circular(model: HarDNet) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
            layer.padding_mode = "circular"
            layer._reversed_padding_repeated_twice = [1, 1, 1, 1]


CHANGES: dict[str, Callable[[HarDNet], object]] = {
    "fused": _fused,
    "frozen": lambda model: _replace_norms(model, lambda norm: FrozenBatchNorm2d(norm.num_features, norm.eps)),
    "groups": lambda model: _replace_norms(model, lambda norm: nn.GroupNorm(1, norm.num_features)),
    "synchronised": nn.SyncBatchNorm.convert_sync_batchnorm,
    "circular padding": _circular,
    "activation": lambda model: setattr(model.base[0], "relu", nn.Hardswish()),
    "head": lambda model: setattr(model.base[-1], "3", nn.Linear(model.num_features, 10)),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("change", CHANGES)
def test_replaced_layers_compute_the_same(change: str, engine: str) -> None:
    model, x = small_model(), torch.randn(2, 3, 64, 64)
    CHANGES[change](model)
    model.eval()
    fast = accelerate(model, engine=engine, example_input=x)
    with torch.no_grad():
        assert same(fast(x), model(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: prune.identity(model.base[1].conv, "weight"), r"Conv2d 'base\.1\.conv' has a hook"),
        (lambda model: spectral_norm(model.base[1].conv), r"ParametrizedConv2d 'base\.1\.conv' is parametrised"),
        (lambda model: model.register_forward_hook(lambda *_: None), "HarDNet 'model' has a hook"),
        (lambda model: model.base[-1].train(), r"Dropout 'base\.\d+\.2' is in training mode"),
        (lambda model: setattr(model.base[0], "norm", nn.BatchNorm2d(24, track_running_stats=False)),
         r"BatchNorm2d 'base\.0\.norm' normalises by the statistics of each batch"),
    ],
)  # fmt: skip
def test_layers_that_no_engine_runs_are_named(change: Callable[[HarDNet], object], message: str) -> None:
    model = small_model()
    change(model)
    with pytest.raises(ValueError, match=message):
        accelerate(model, engine="torch")


def test_an_engine_with_another_result_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ACCELERATE._TABLE["torch"]
    monkeypatch.setitem(ACCELERATE._TABLE, "torch", row._replace(build=lambda model, *_: lambda x: 1.001 * model(x)))
    with pytest.raises(ValueError, match=r"the torch engine does not compute what hardnet39ds computes.* 1\.0e-03"):
        accelerate(small_model(), engine="torch")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_models_of_timm_give_logits(engine: str) -> None:
    timm = pytest.importorskip("timm")
    importlib.import_module("hardnet.timm_registry")
    model, x = timm.create_model("hardnet39ds", num_classes=5).eval(), torch.rand(2, 3, 64, 64)
    fast = accelerate(model, engine=engine)
    with torch.no_grad():
        assert same(fast(x), model(x))
    assert fast.feature_info is None


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "precision='int8' and calibration= go together"),
        ([torch.zeros(2, 3, 64, 64, dtype=torch.uint8)], "floating-point images, got torch.uint8"),
        ([torch.full((2, 3, 64, 64), float("nan"))], "got values up to nan"),
        (255 * torch.rand(2, 3, 64, 64), "got values up to 25.*: scale them"),
        ([torch.zeros(2, 3, 64)], "takes images of shape"),
        ([[0.0]], "takes batches of images, .* got list"),
        ([torch.zeros(0, 3, 64, 64)], "precision='int8' and calibration= go together"),
    ],
)
def test_calibration_images_are_checked(calibration: list[Tensor] | None, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        accelerate(small_model(), engine="openvino", precision="int8", calibration=calibration)


def test_int8_that_changes_too_many_labels_is_refused() -> None:
    model, x = small_model(), [torch.randn(10, 3, 64, 64)]
    check_agreement(model, model, x, labelled=True)
    order = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
    with pytest.raises(ValueError, match=r"int8 changes 100% of the labels .*at most 10%"):
        check_agreement(model, lambda x: model(x)[:, order], x, labelled=True)
    check_agreement(model, lambda x: 1.1 * model(x), x, labelled=False)
    with pytest.raises(ValueError, match="changes 200% of the norm"):
        check_agreement(model, lambda x: -model(x), x, labelled=False)


QUIET = """
import random, sys, torch, hardnet
from hardnet.engines import openvino
from hardnet.images.batches import prepare_each

openvino.cpu_has_amx_int8 = lambda: True  # NNCF then reports what it leaves in float
model = hardnet.create_model("hardnet39ds", weights="FASHION_MNIST").eval()
x = list(prepare_each(sys.argv[1], model.preprocessing, model))
before = list(sys.path), random.getstate(), torch.get_rng_state().tolist()
for engine, precision in (("torch", "fp32"), ("onnxruntime", "int8"), ("openvino", "int8")):
    hardnet.accelerate(model, engine=engine, precision=precision, calibration=x if precision == "int8" else None)
sys.exit(before != (list(sys.path), random.getstate(), torch.get_rng_state().tolist()))
"""


@pytest.mark.slow
def test_conversions_print_nothing_and_leave_the_state_of_the_process() -> None:
    command = [sys.executable, "-c", QUIET, str(SAMPLE.parent)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_log_names_the_faster_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ACCELERATE, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: name)
    for name, amx, precision, faster in (
        ("hardnet39ds", True, "fp32", "bf16"),
        ("hardnet39ds", True, "bf16", "bf16"),
        ("hardnet39ds", False, "bf16", "int8"),
        ("hardnet68", True, "fp32", "int8"),
    ):
        monkeypatch.setattr(openvino, "cpu_has_amx_int8", lambda amx=amx: amx)
        assert ACCELERATE._faster(create_model(name), precision) == faster


def test_an_accelerated_model_is_for_evaluation_and_checks_its_input() -> None:
    fast = accelerate(create_model("hardnet39ds"), engine="torch")
    assert not list(fast.parameters())
    with pytest.raises(RuntimeError, match="for evaluation only"):
        fast.train()
    assert fast.eval() is fast
    assert copy.deepcopy(fast) is fast
    with pytest.raises(TypeError, match=r"pickle the model, and call hardnet\.accelerate"):
        pickle.dumps(fast)
    for x, message in (
        (torch.zeros(3, 64, 64), "add the batch dimension"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.float64), "takes float32 images"),
        (torch.zeros(1, 3, 64, 64, device="meta"), "the images are on meta"),
    ):
        with pytest.raises(ValueError, match=message):
            fast(x)


def test_a_conversion_is_kept_until_its_bytes_change_or_the_cache_is_full(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, golden_fill: Fill
) -> None:
    assert digest_of(small_model()) == digest_of(small_model()) != digest_of(golden_fill(small_model()))
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "model.bin").write_bytes(bytes(100))

    def converted(key: str) -> int:
        assert from_artifact(key, build, lambda folder: (folder / "model.bin").read_bytes()) == bytes(100)
        return len(built)

    assert [converted("first"), converted("first")] == [1, 1]
    (artifacts_dir() / "first" / "model.bin").write_bytes(bytes(99) + b"x")
    assert converted("first") == 2
    assert "not those that were written" in caplog.text
    (artifacts_dir() / "first" / "digests.json").unlink()
    assert [converted("first"), converted("second")] == [3, 4]
    os.utime(artifacts_dir() / "first", (1, 1))
    assert converted("first") == 4  # "second" is now the one that was not used for longest
    monkeypatch.setattr(cache, "MOST_CONVERSIONS", 2)
    os.utime(artifacts_dir() / "second", (1, 1))
    converted("third")
    assert sorted(path.name for path in artifacts_dir().iterdir()) == ["first", "third"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    assert [converted("first"), converted("first")] == [6, 7]
    assert "the converted model is not kept" in caplog.text


def test_the_engine_follows_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("hardnet39ds")
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: name == "openvino" or None)
    choices = {32: "eager", 33: "torch", 10_000: "torch", 10_001: "openvino", None: "openvino"}
    assert {count: choose_engine(model, images=count) for count in choices} == choices
    assert choose_engine(model, "bf16", 1) == "openvino"
    with torch.device("meta"):
        assert choose_engine(create_model("hardnet39ds"), images=5000) == "eager"  # not on the CPU
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: None)
    assert choose_engine(model) == "torch"


def test_engines_of_auto_are_built_once_and_fall_back_to_pytorch(
    monkeypatch: pytest.MonkeyPatch, golden_fill: Fill, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: name == "openvino")
    broken = ACCELERATE._TABLE["openvino"]._replace(build=lambda *_: 1 / 0)
    monkeypatch.setitem(ACCELERATE._TABLE, "openvino", broken)
    model, x = golden_fill(create_model("hardnet39ds")).eval(), torch.randn(2, 3, 32, 32)
    cache = EngineCache(model)
    with torch.inference_mode():
        expected = model(x)
        for images, engine in ((2, "eager"), (33, "torch"), (None, "torch"), (10_001, "torch"), (2, "eager")):
            name, run = cache.for_images(images)
            assert name == engine
            assert same(run(x), expected)
    assert cache.for_images(33)[1] is cache.for_images(None)[1]
    assert caplog.text.count("the openvino engine is not available, using PyTorch instead") == 1


def test_labels_stay_when_the_engine_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: None)
    monkeypatch.setattr(ACCELERATE, "EAGER_UP_TO", 12)
    options = {"weights": "FASHION_MNIST", "device": "cpu"}
    eager, auto = (Classifier("hardnet39ds", engine=engine, **options) for engine in ("eager", "auto"))
    expected, results = (runner.predict(SAMPLE.parent, batch_size=8) for runner in (eager, auto))
    assert len(expected) > 12
    assert [result.top.label for result in results] == [result.top.label for result in expected]


@pytest.mark.parametrize(("engine", "expected"), [("eager", [1, 9]), ("torch", [1, 5, 4])])
@pytest.mark.parametrize("features_only", [False, True])
def test_all_engines_but_eager_get_slices(
    engine: str, expected: list[int], features_only: bool, golden_fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def build(model: HarDNet, *_: object) -> Callable[[Tensor], Tensor]:
        return lambda x: sizes.append(len(x)) or model(x)

    monkeypatch.setattr(base, "_SLICE_PIXELS", 5 * 64 * 64 + 1)
    monkeypatch.setitem(ACCELERATE._TABLE, engine, ACCELERATE._TABLE[engine]._replace(build=build))
    model = golden_fill(create_model("hardnet39ds", features_only=features_only)).eval()
    x = torch.rand(9, 3, 64, 64)
    with torch.no_grad():
        outputs = base.levels_of(accelerate(model, engine=engine)(x)), base.levels_of(model(x))
    assert all(same(*pair) for pair in zip(*outputs, strict=True))
    assert sizes == expected  # the first image is the comparison with the model
