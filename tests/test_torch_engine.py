"""The parts of the engine "torch": fused convolutions, graphs of oneDNN."""

import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from conftest import Fill, same
from torch import Tensor, nn

from hardnet import accelerate, create_model
from hardnet.engines import fold, torch_engine, torch_private
from hardnet.engines.torch_engine import OneDnnGraphs, fuse
from hardnet.engines.torch_private import FusedConv

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def test_convolutions_are_fused() -> None:
    fused = fuse(fold(create_model("hardnet39ds")))
    assert not any(isinstance(module, (nn.BatchNorm2d, nn.Conv2d, nn.ReLU6)) for module in fused.modules())
    assert sum(isinstance(module, FusedConv) for module in fused.modules()) > 50


@pytest.fixture
def folded(golden_fill: Fill) -> nn.Module:
    return fold(golden_fill(create_model("hardnet39ds")).eval()).to(memory_format=torch.channels_last)


def images(count: int, size: int = 64) -> Tensor:
    return torch.rand(count, 3, size, size).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("compile_after", "most", "count", "sizes", "times"),
    [
        (0, 4, 1, (64, 64, 64, 64), [1, 2, 2, 2]),  # the second time, to compare the graph with
        (8, 4, 4, (64, 64, 64, 64), [1, 2, 3, 3]),  # after 8 images
        (0, 1, 1, (64, 64, 96, 96, 96), [1, 2, 3, 4, 5]),  # one graph only
        (0, 4, 1, (64, 96, 64, 96), [1, 2, 3, 4]),  # not twice in a row
    ],
)
def test_a_shape_that_comes_again_gets_a_graph(
    compile_after: int,
    most: int,
    count: int,
    sizes: tuple[int, ...],
    times: list[int],
    folded: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch_engine, "MAX_GRAPHS", most)
    runs: list[Tensor] = []
    graphs = OneDnnGraphs(folded, lambda x: runs.append(x) or folded(x), compile_after)
    counts = []
    for size in sizes:
        x = images(count, size)
        assert same(graphs(x), folded(x))
        counts.append(len(runs))
    assert counts == times


@pytest.mark.parametrize("setting", [False, True])
def test_what_torch_is_set_to_stays(setting: bool, folded: nn.Module) -> None:
    before = torch.jit.onednn_fusion_enabled()
    torch.jit.enable_onednn_fusion(setting)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            graphs = OneDnnGraphs(folded, folded)
            for _ in range(2):
                graphs(images(1))
        assert torch.jit.onednn_fusion_enabled() is setting
    finally:
        torch.jit.enable_onednn_fusion(before)


@pytest.mark.parametrize("trouble", ["fails", "is wrong", "gives no number"])
def test_runs_without_where_the_compiler(
    trouble: str, folded: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compile_graph(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
        if trouble == "fails":
            raise RuntimeError("could not create a primitive")
        return lambda x: model(x) * (1.001 if trouble == "is wrong" else float("nan"))

    monkeypatch.setattr(torch_private, "compile_graph", compile_graph)
    graphs = OneDnnGraphs(folded, folded)
    x = images(1)
    for _ in range(3):
        assert torch.equal(graphs(x), folded(x))
    [record] = caplog.records  # once
    assert "running without" in record.message


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (torch.ops, "mkldnn"),
        (torch._C, "_create_graph_by_tracing"),
        (torch._C, "_create_function_from_graph"),
        (torch.jit, "enable_onednn_fusion"),
    ],
)
def test_answers_without_each_private_function_of_torch(
    place: object, name: str, golden_fill: Fill, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = golden_fill(create_model("hardnet39ds")).eval()
    monkeypatch.setattr(place, name, SimpleNamespace())  # which has no functions, and is none
    fast = accelerate(model, engine="torch", example_input=images(1))
    for size in (64, 96, 96):
        x = images(1, size)
        with torch.no_grad():
            assert same(fast(x), model(x))
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "running without" in record.message


def test_threads_share_the_graphs(folded: nn.Module) -> None:
    run = torch.no_grad()(OneDnnGraphs(folded, folded))
    batches = [images(1) for _ in range(16)]
    expected = [folded(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert all(same(*pair) for pair in zip(pool.map(run, batches), expected, strict=True))


def test_images_of_every_sort(golden_fill: Fill) -> None:
    """One channel, whose order in memory is both, inference mode, and images that want gradients."""
    model = golden_fill(create_model("hardnet39ds", in_chans=1)).eval()
    fast = accelerate(model, engine="torch", example_input=torch.zeros(2, 1, 64, 64))
    plain = torch.rand(2, 1, 64, 64)
    last = plain.as_strided(plain.shape, (64 * 64, 1, 64, 1))
    with torch.inference_mode():
        expected, inferred = model(plain), plain.clone()
        assert same(fast(plain), expected)
    for x in (plain, last, inferred, plain.clone().requires_grad_(), plain):
        logits = fast(x)
        assert same(logits, expected)
        assert not logits.requires_grad


WEIGHTS_ARE_LAID_OUT_ONCE = """
import torch, hardnet
x = torch.rand(1, 3, 64, 64)
fast = hardnet.accelerate(hardnet.hardnet39ds().eval(), engine="torch", example_input=x)
with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
    fast(x)
"""


def test_no_call_lays_out_weights_again() -> None:
    """torch's own convolutions reorder them in every call, which takes more than half the time of small images."""
    command = [sys.executable, "-c", WEIGHTS_ARE_LAID_OUT_ONCE]
    report = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    ran = [line.partition(",exec,cpu,")[2].split(",") for line in report.splitlines() if ",exec,cpu," in line]
    convolutions = [fields for fields in ran if fields[0] == "convolution"]
    assert len(convolutions) > 30  # graphs may take depthwise ones together with those before them
    assert not [fields for fields in ran if fields[0] == "reorder" and not fields[-2].startswith("1x")]  # not the image
