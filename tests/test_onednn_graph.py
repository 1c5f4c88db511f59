"""oneDNN's graphs in the torch engine: built for shapes that come again, exact, and done without where they fail."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from hardnet import accelerate, create_model
from hardnet.engines import fold, onednn_graph
from hardnet.engines.onednn_graph import OneDnnGraphs

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True)
def without_gradients() -> object:
    with torch.no_grad():
        yield


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


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-4 * wanted.abs().max())


def test_a_shape_that_comes_again_gets_a_graph(folded: nn.Module) -> None:
    plain = Watched(folded)
    graphs = OneDnnGraphs(folded, plain)
    for number, times in enumerate((1, 2, 2, 2)):  # the second time, to compare the graph with
        x = images(1, 3, 64, 64, seed=number)
        assert close(graphs(x), folded(x))
        assert plain.times == times


def test_graphs_are_bounded(folded: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_graph, "_MOST_GRAPHS", 1)
    plain = Watched(folded)
    graphs = OneDnnGraphs(folded, plain)
    for size in (64, 64, 96, 96, 96):
        x = images(1, 3, size, size)
        assert close(graphs(x), folded(x))
    assert plain.times == 2 + 3


def test_shapes_in_turns_get_none(folded: nn.Module) -> None:
    plain = Watched(folded)
    graphs = OneDnnGraphs(folded, plain)
    for size in (64, 96) * 3:
        graphs(images(1, 3, size, size))
    assert plain.times == 6


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

    monkeypatch.setattr(onednn_graph, "compile_graph", compile_graph)
    graphs = OneDnnGraphs(folded, folded)
    x = images(1, 3, 64, 64)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(graphs(x), folded(x))
    [said] = caplog.records  # once
    assert "running without" in said.message


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
            assert all(close(one, other) for one, other in zip(pool.map(run, batches), wanted, strict=True))


def test_feature_maps(golden_fill: Callable[[nn.Module], nn.Module]) -> None:
    pyramid = prepared(golden_fill(create_model("hardnet68ds", features_only=True)))
    graphs, x = OneDnnGraphs(pyramid, pyramid), images(2, 3, 64, 96)
    for _ in range(3):
        assert all(close(one, other) for one, other in zip(graphs(x), pyramid(x), strict=True))


def test_images_of_every_sort(golden_fill: Callable[[nn.Module], nn.Module]) -> None:
    """One channel, whose order in memory is both, inference mode, and images that want gradients."""
    model = golden_fill(create_model("hardnet39ds", in_chans=1)).eval()
    fast = accelerate(model, engine="torch")  # type: ignore[arg-type]
    plain = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted = model(plain)
    last = plain.as_strided(plain.shape, (64 * 64, 1, 64, 1))
    with torch.inference_mode():
        inferred = plain.clone()
    for x in (plain, last, inferred, plain.clone().requires_grad_(), plain):
        found = fast(x)
        assert close(found, wanted)
        assert not found.requires_grad
    with torch.inference_mode():
        assert close(fast(plain), wanted)


WEIGHTS_ARE_LAID_OUT_ONCE = """
import sys, torch, hardnet

x = torch.rand(1, 3, 64, 64)
fast = hardnet.accelerate(hardnet.hardnet39ds().eval(), engine=sys.argv[1], example_input=x)
with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
    fast(x)
"""


@pytest.mark.parametrize("engine", ["torch", pytest.param("inductor", marks=pytest.mark.slow)])
def test_no_call_lays_out_weights_again(engine: str) -> None:
    """torch's own convolutions do at every call, which costs more than half the time of small images."""
    command = [sys.executable, "-c", WEIGHTS_ARE_LAID_OUT_ONCE, engine]
    report = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    ran = [line.partition(",exec,cpu,")[2].split(",") for line in report.splitlines() if ",exec,cpu," in line]
    convolutions = [fields for fields in ran if fields[0] == "convolution"]
    assert len(convolutions) > 30  # graphs may take depthwise ones together with those before them
    assert not [fields for fields in ran if fields[0] == "reorder" and not fields[-2].startswith("1x")]  # not the image


DROPPED = """
import gc, torch, hardnet

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

x = torch.rand(1, 3, 32, 32)
model = hardnet.hardnet68().eval()
sizes = []
for _ in range(6):
    fast = hardnet.accelerate(model, engine="torch", example_input=x)
    fast(x)
    del fast
    gc.collect()
    sizes.append(resident())
print((sizes[-1] - sizes[1]) / sum(4 * p.numel() for p in model.parameters()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_graphs_go_with_the_engine() -> None:
    """What torch.jit.trace makes stays until the process ends."""
    command = [sys.executable, "-c", DROPPED]
    grown = float(subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout)
    assert grown < 2  # times the weights; four engines were dropped, each with at least one copy of them
