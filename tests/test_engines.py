"""Every engine computes what the model computes, or its error says why it is not available."""

from __future__ import annotations

import copy
import importlib
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MODELS
from torch import Tensor, nn

from hardnet import Accelerated, Classifier, Extractor, HarDNet, accelerate, create_model
from hardnet.engines import AutoEngine, available_engines, base, choose_engine, fold, native, openvino
from hardnet.engines.accelerate import cpu_has_bf16
from hardnet.engines.cache import artifacts_dir, fingerprint
from hardnet.engines.folding import merge
from hardnet.engines.native import FusedConv, OneDnnGraphs, fuse
from hardnet.models.config import CONFIGS
from hardnet.models.layers import HarDBlock

SAMPLE = Path(__file__).parent.parent / "images" / "fashion_mnist" / "bag-00018.png"
SHAPES = [(1, 3, 64, 96), (3, 3, 33, 32), (0, 3, 64, 64)]
MORE_SHAPES = [(1, 3, 224, 224), (3, 3, 65, 97), *SHAPES]
Fill = Callable[[nn.Module], nn.Module]
ACCELERATE = importlib.import_module("hardnet.engines.accelerate")  # the package has a function of this name
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")  # type: ignore[no-untyped-call]


def same(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether shapes agree, and values within a tolerance relative to the largest."""
    if found.shape != wanted.shape:
        return False
    return not len(wanted) or bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())


def check(engine: str, name: str, fill: Fill, shapes: list[tuple[int, ...]], **options: object) -> None:
    """Compare with the eager model, with parameters that saturate ReLU6."""
    model = fill(create_model(name)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    example = torch.randn(shapes[0])  # with it, "torch" compiles every shape that comes twice
    fast = accelerate(model, engine=engine, example_input=example, **options)  # type: ignore[arg-type]
    assert isinstance(fast, Accelerated)
    assert fast.engine == engine
    for shape in shapes:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            wanted = model(x)
        assert same(fast(x), wanted), shape
        assert same(fast(x.to(memory_format=torch.channels_last)), wanted), "channels last"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name != "hardnet39ds" else name for name in MODELS],
)
def test_torch(name: str, golden_fill: Fill) -> None:
    check("torch", name, golden_fill, SHAPES, threads=1)


@pytest.mark.parametrize("engine", ["eager", "openvino"])
def test_other_engines(engine: str, golden_fill: Fill) -> None:
    check(engine, "hardnet39ds", golden_fill, SHAPES)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ["eager", "torch", "openvino", "onnxruntime"])
def test_more_shapes(engine: str, name: str, golden_fill: Fill) -> None:
    check(engine, name, golden_fill, MORE_SHAPES)


def test_a_shape_that_crashes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On processors with AMX a child process tries each shape of int8 in OpenVINO."""
    monkeypatch.setattr(openvino, "_TRY", "import os, sys; '48' in sys.argv[3] and os.abort()")
    monkeypatch.setattr(openvino, "artifacts_dir", lambda: tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    good, bad = torch.zeros(1, 3, 64, 96), torch.zeros(1, 3, 48, 48)
    for _ in range(2):
        run = openvino.TriedShapes(lambda x: x, folder, {})
        assert run(good) is good
        with pytest.raises(ValueError, match=r"crashes in int8 on .* of shape \(1, 3, 48, 48\)"):
            run(bad)
        monkeypatch.setattr(openvino, "_TRY", "raise SystemExit('the results were not kept')")
    with pytest.raises(RuntimeError, match=r"fails for .*the results were not kept"):
        run(torch.zeros(2, 3, 64, 96))


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
        assert (made / "shape-4x3x64x64.txt").exists() is amx
    assert counts[0] > 10
    assert counts[1] == 0


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


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_inductor(name: str, golden_fill: Fill) -> None:
    check("inductor", name, golden_fill, SHAPES[:2])


def test_folding_keeps_the_function_and_the_original(golden_fill: Fill) -> None:
    model = golden_fill(create_model("hardnet68ds")).eval()
    folded = fold(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert same(folded(x), model(x))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("classifier", "hardnet39ds"),
        ("classifier", "hardnet68"),
        ("with ReLU", "hardnet39ds"),
        ("dilated pyramid", "hardnet39ds"),
    ],
)
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


@needs_onednn
def test_convolutions_are_fused() -> None:
    fused = fuse(fold(create_model("hardnet39ds")))
    assert not any(isinstance(module, (nn.Conv2d, nn.ReLU6)) for module in fused.modules())
    assert sum(isinstance(module, FusedConv) for module in fused.modules()) > 50


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
    assert available_engines() == ["torch", "eager", "inductor"]
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
def test_what_cannot_be_had_is_refused(options: dict[str, object], error: type[Exception], said: str) -> None:
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
    model, small = create_model("hardnet68"), create_model("hardnet39ds")
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: name == "openvino" or None)
    wanted = {32: "eager", 33: "torch", 1000: "torch", 1001: "openvino", None: "openvino"}
    assert {count: choose_engine(model, images=count) for count in wanted} == wanted
    assert [choose_engine(small, images=count) for count in (10_000, 10_001)] == ["torch", "openvino"]
    assert choose_engine(model, "bf16", 1) == "openvino"
    with torch.device("meta"):
        assert choose_engine(create_model("hardnet68"), images=5000) == "eager"  # not on the CPU
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: None)
    assert choose_engine(model) == "torch"


def test_auto_changes_the_engine_as_images_come(
    monkeypatch: pytest.MonkeyPatch, golden_fill: Fill, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: None)
    model = golden_fill(create_model("hardnet39ds")).eval()
    auto, x = AutoEngine(model), torch.randn(32, 3, 32, 32)
    with torch.inference_mode():
        wanted = model(x)
        for engine in ("eager", "torch", "torch"):
            found = auto(x)
            assert isinstance(found, Tensor)
            assert same(found, wanted)
            assert auto._engine == engine
    broken = AutoEngine(model)
    monkeypatch.setattr(ACCELERATE, "accelerate", lambda *_, **__: 1 / 0)
    with torch.inference_mode():
        assert torch.equal(torch.cat([broken(x), broken(x)]), torch.cat([wanted, wanted]))  # type: ignore[list-item]
    assert "going on without it: division by zero" in caplog.text


def test_labels_and_embeddings_stay_when_the_engine_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ACCELERATE, "find_spec", lambda name: None)
    monkeypatch.setattr(ACCELERATE, "FEW", 12)
    options = {"weights": "FASHION_MNIST", "device": "cpu"}
    eager, auto = (Classifier("hardnet39ds", engine=engine, **options) for engine in ("eager", "auto"))  # type: ignore[arg-type]
    wanted, found = (runner.predict(SAMPLE.parent, batch_size=8) for runner in (eager, auto))
    assert auto._auto is not None
    assert auto._auto._engine == "torch"
    assert len(wanted) > 12
    assert [result.top.label for result in found] == [result.top.label for result in wanted]
    module, named = (
        Extractor(create_model("hardnet39ds", weights="FASHION_MNIST"), device="cpu"),
        Extractor("hardnet39ds", **options),  # type: ignore[arg-type]
    )
    for one, other in zip(module.stream(SAMPLE.parent, 8), named.stream(SAMPLE.parent, 8), strict=True):
        assert one.vector is not None
        assert other.vector is not None
        assert same(other.vector, one.vector)


def prepared(model: nn.Module) -> nn.Module:
    return fold(model.eval()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@pytest.fixture
def folded(golden_fill: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return prepared(golden_fill(create_model("hardnet39ds")))


def images(*shape: int, seed: int = 0) -> Tensor:
    made = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return made.contiguous(memory_format=torch.channels_last)


class Watched:
    """Counts how often the model is run as it is."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.times = model, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.times += 1
        output: Tensor = self.model(x)
        return output


@needs_onednn
def test_a_shape_that_comes_again_gets_a_graph(folded: nn.Module) -> None:
    plain = Watched(folded)
    graphs = OneDnnGraphs(folded, plain)
    for number, times in enumerate((1, 2, 2, 2)):  # the second time, to compare the graph with
        x = images(1, 3, 64, 64, seed=number)
        assert same(graphs(x), folded(x))
        assert plain.times == times


@needs_onednn
def test_a_graph_waits_for_images(folded: nn.Module) -> None:
    plain = Watched(folded)
    graphs = OneDnnGraphs(folded, plain, patience=8)
    for times in (1, 2, 3, 3):  # 4 and 8 images without; the third time, to compare with; then the graph alone
        graphs(images(4, 3, 64, 64))
        assert plain.times == times


@pytest.mark.parametrize("features_only", [False, True])
def test_large_batches_run_in_equal_slices(
    features_only: bool, golden_fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_SLICE_PIXELS", 5 * 64 * 64 + 1)
    model, sizes, x = (
        golden_fill(create_model("hardnet39ds", features_only=features_only)).eval(),
        [],
        images(9, 3, 64, 64),
    )
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    found, wanted = base.in_slices(model)(x), model(x)
    assert sizes == [5, 4, 9]
    pairs = zip(found, wanted, strict=True) if features_only else [(found, wanted)]
    assert all(same(one, other) for one, other in pairs)  # type: ignore[arg-type]


@needs_onednn
def test_graphs_are_bounded(folded: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(native._MAX_GRAPHS, "cpu", 1)
    plain = Watched(folded)
    graphs = OneDnnGraphs(folded, plain)
    for size in (64, 64, 96, 96, 96):
        x = images(1, 3, size, size)
        assert same(graphs(x), folded(x))
    assert plain.times == 2 + 3


@needs_onednn
def test_shapes_in_turns_get_none(folded: nn.Module) -> None:
    plain = Watched(folded)
    graphs = OneDnnGraphs(folded, plain)
    for size in (64, 96) * 3:
        graphs(images(1, 3, size, size))
    assert plain.times == 6


@needs_onednn
@pytest.mark.parametrize("setting", [False, True])
def test_what_torch_is_set_to_stays(setting: bool, folded: nn.Module) -> None:
    before = torch.jit.onednn_fusion_enabled()  # type: ignore[no-untyped-call]
    torch.jit.enable_onednn_fusion(setting)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            graphs = OneDnnGraphs(folded, folded)
            for _ in range(2):
                graphs(images(1, 3, 64, 64))
        assert torch.jit.onednn_fusion_enabled() is setting  # type: ignore[no-untyped-call]
    finally:
        torch.jit.enable_onednn_fusion(before)


@needs_onednn
@pytest.mark.parametrize("trouble", ["fails", "is missing", "is wrong", "gives no number"])
def test_runs_without_where_the_compiler(
    trouble: str, folded: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compile_graph(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
        if trouble == "fails":
            raise RuntimeError("could not create a primitive")
        if trouble == "is missing":
            raise AttributeError("module 'torch.jit' has no attribute 'trace'")
        return lambda x: model(x) * (1.001 if trouble == "is wrong" else float("nan"))

    monkeypatch.setattr(native, "compile_graph", compile_graph)
    graphs = OneDnnGraphs(folded, folded)
    x = images(1, 3, 64, 64)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(graphs(x), folded(x))
    [said] = caplog.records  # once
    assert "running without" in said.message


@needs_onednn
def test_threads_share_the_graphs(folded: nn.Module) -> None:
    graphs = OneDnnGraphs(folded, folded)
    batches = [images(1, 3, 64, 64, seed=seed) for seed in range(16)]
    wanted = [folded(x) for x in batches]

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            found = graphs(x)
            return found if isinstance(found, Tensor) else found[0]

    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert all(same(one, other) for one, other in zip(pool.map(run, batches), wanted, strict=True))


@needs_onednn
def test_images_of_every_sort(golden_fill: Callable[[nn.Module], nn.Module]) -> None:
    """One channel, whose order in memory is both, inference mode, and images that want gradients."""
    model = golden_fill(create_model("hardnet39ds", in_chans=1)).eval()
    fast = accelerate(model, engine="torch", example_input=torch.zeros(2, 1, 64, 64))  # type: ignore[arg-type]
    plain = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(plain)
    last = plain.as_strided(plain.shape, (64 * 64, 1, 64, 1))
    with torch.inference_mode():
        inferred = plain.clone()
    for x in (plain, last, inferred, plain.clone().requires_grad_(), plain):
        found = fast(x)
        assert same(found, wanted)
        assert not found.requires_grad
    with torch.inference_mode():
        assert same(fast(plain), wanted)


WEIGHTS_ARE_LAID_OUT_ONCE = """
import sys, torch, hardnet

x = torch.rand(1, 3, 64, 64)
fast = hardnet.accelerate(hardnet.hardnet39ds().eval(), engine=sys.argv[1], example_input=x)
with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
    fast(x)
"""


@needs_onednn
@pytest.mark.parametrize("engine", ["torch", pytest.param("inductor", marks=pytest.mark.slow)])
def test_no_call_lays_out_weights_again(engine: str) -> None:
    """torch's own convolutions reorder them in every call, which takes more than half the time of small images."""
    command = [sys.executable, "-c", WEIGHTS_ARE_LAID_OUT_ONCE, engine]
    report = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    ran = [line.partition(",exec,cpu,")[2].split(",") for line in report.splitlines() if ",exec,cpu," in line]
    convolutions = [fields for fields in ran if fields[0] == "convolution"]
    assert len(convolutions) > 30  # graphs may take depthwise ones together with those before them
    assert not [fields for fields in ran if fields[0] == "reorder" and not fields[-2].startswith("1x")]  # not the image
