"""Engines that need only torch: "eager", the model itself, and "torch", the folded model with oneDNN or CUDA graphs.

Each call of a oneDNN operator of torch costs about 20 microseconds and reorders the weights again, which on small
images takes longer than the convolution. A graph of oneDNN does neither. It is reached through TorchScript, which is
deprecated: where torch does not have it, or where the graph is not exact, the fused operators run instead.
"""

from __future__ import annotations

import copy
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..models.layers import ConvLayer, DWConvLayer
from ..models.network import ImageModule
from .base import Output, Plan, Run, normalising
from .folding import convolution_name, fold

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_MAX_GRAPHS = {"cpu": 4, "cuda": 8}
"""Graphs that are kept, one per shape. On CPUs each holds its own copy of the weights, on CUDA its activations."""

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference between a graph and the model, relative to the largest value."""

_LOCK = threading.Lock()
"""Whether TorchScript uses oneDNN's graphs is a setting of the whole process."""


def build_eager(model: ImageModule, plan: Plan, calibration: list[Tensor]) -> Run:
    """Return a copy of the model."""
    eager = normalising(copy.deepcopy(model).eval().requires_grad_(False), plan.preprocessing)

    def run(x: Tensor) -> Output:
        with cpu_threads(plan.threads):
            return eager(x)

    return run


def build(model: ImageModule, plan: Plan, calibration: list[Tensor]) -> Run:
    """Return the folded model in channels-last order: as graphs, or with fused operators, where torch has them."""
    dtype = DTYPES[plan.precision]
    folded: nn.Module = fold(model).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if plan.device.type == "cuda":
        return normalising(_CudaGraphs(in_channels_last(folded, dtype)), plan.preprocessing)
    if _onednn_works(dtype):
        fused = fuse(copy.deepcopy(folded, {id(each): each for each in folded.parameters()}))  # the weights are shared
        prepared = in_channels_last(OneDnnGraphs(folded, fused, plan.patience), dtype)
    else:
        prepared = in_channels_last(folded, dtype)
    normalised = normalising(prepared, plan.preprocessing)

    def run(x: Tensor) -> Output:
        with cpu_threads(plan.threads):
            return normalised(x)

    return run


def in_channels_last(model: Callable[[Tensor], Any], dtype: torch.dtype) -> Run:
    """Return a function from float32 images in any memory format to float32 output."""

    def run(x: Tensor) -> Output:
        output = model(x.to(dtype=dtype, memory_format=torch.channels_last))
        return [each.float() for each in output] if isinstance(output, (list, tuple)) else output.float()

    return run


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Set torch's number of threads within the block."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fuse(folded: nn.Module) -> nn.Module:
    """Replace, in place, a folded model's convolutions and activations by fused operators of oneDNN."""
    for layer in list(folded.modules()):
        if isinstance(layer, (ConvLayer, DWConvLayer)):
            name = convolution_name(layer)
            setattr(layer, name, FusedConv(getattr(layer, name), getattr(layer, "relu", None)))
            if isinstance(layer, ConvLayer):
                del layer.relu
    return folded


class FusedConv(nn.Module):
    """Convolution, bias and activation in one oneDNN call: (N, C, H, W) -> (N, out, H / stride, W / stride), CPU."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        bias = conv.bias.detach() if conv.bias is not None else None
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.arguments = (conv.padding, conv.stride, conv.dilation, conv.groups, *_onednn_activation(activation), "")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out, H / stride, W / stride)."""
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.arguments)
        return output


def _onednn_activation(activation: nn.Module | None) -> tuple[str, list[float]]:
    if activation is None:
        return "none", []
    if isinstance(activation, nn.ReLU6):
        return "hardtanh", [0.0, 6.0]
    if isinstance(activation, nn.ReLU):
        return "relu", []
    raise TypeError(f"{type(activation).__name__} cannot be fused with a convolution")


def _onednn_works(dtype: torch.dtype) -> bool:
    """Try the fused operator, which is not part of torch's stable interface, on a small convolution."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    conv = nn.Conv2d(3, 8, 3, padding=1).to(dtype)
    x = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    try:
        with torch.no_grad():
            found = FusedConv(conv, nn.ReLU6())(x)
            wanted = conv(x).clamp(0, 6)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(torch.allclose(found.float(), wanted.float(), rtol=1e-2, atol=1e-2))


class OneDnnGraphs:
    """Run a compiled graph for shapes that come repeatedly: (N, C, H, W), channels last -> output of the model.

    Args:
        folded: the network to compile; its parameters must not require gradients.
        otherwise: the same network, for all other shapes.
        patience: images of the shape in a row that run before it is compiled; at least one batch does.
    """

    def __init__(self, folded: nn.Module, otherwise: Callable[[Tensor], Output], patience: int = 0) -> None:
        self._folded, self._otherwise, self._patience = folded, otherwise, patience
        self._graphs: dict[torch.Size, Callable[[Tensor], Output]] = {}
        self._seen: torch.Size | None = None
        self._images = 0  # of this shape in a row

    def __call__(self, x: Tensor) -> Output:
        """(N, C, H, W) -> output of the model."""
        x = x.detach()  # graphs are compiled for images that do not require gradients
        run = self._graphs.get(x.shape)
        if run is not None:
            return run(x)
        self._images = len(x) + (self._images if x.shape == self._seen else 0)
        self._seen = x.shape
        if self._images <= max(self._patience, len(x)) or len(self._graphs) >= _MAX_GRAPHS["cpu"]:
            return self._otherwise(x)
        with _LOCK:
            if x.shape not in self._graphs:
                self._graphs[x.shape] = self._compile(x)
        return self._graphs[x.shape](x)

    def _compile(self, x: Tensor) -> Callable[[Tensor], Output]:
        """Return the graph for the shape of x, or the model if the compiler fails or the graph is not exact."""
        try:
            graph = compile_graph(self._folded, x)
            error = _difference(graph(x), self._otherwise(x))
        except (AttributeError, RuntimeError, TypeError) as failure:
            why = str(failure).strip().split("\n")[-1]  # TorchScript puts a traceback of its own before it
            logger.warning("no graph of oneDNN for images of %s, running without: %s", tuple(x.shape), why)
            return self._otherwise
        if not error <= _TOLERANCE[x.dtype]:  # true for NaN as well
            logger.warning("the graph of oneDNN for images of %s is not exact, running without", tuple(x.shape))
            return self._otherwise
        return graph


def compile_graph(model: nn.Module, x: Tensor) -> Callable[[Tensor], Output]:
    """Return a folded model compiled for the shape of x.

    Raises:
        AttributeError, RuntimeError, TypeError: torch does not have the compiler, or the compiler fails.
    """
    before = torch.jit.onednn_fusion_enabled()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; checks of the shape become constants
        torch.jit.enable_onednn_fusion(True)
        try:
            # torch.jit.trace would keep the graph until the process ends.
            traced, _ = torch._C._create_graph_by_tracing(lambda x: model(x), (x,), lambda tensor: "", True, False)
            graph: Callable[[Tensor], Output] = torch._C._create_function_from_graph("forward", traced)
            for _ in range(2):  # the first call profiles, the second compiles
                graph(x)
        finally:
            torch.jit.enable_onednn_fusion(before)
    return graph


def _difference(found: Output, wanted: Output) -> float:
    """Return the largest difference, relative to the largest value."""
    both = ([output] if isinstance(output, Tensor) else output for output in (found, wanted))
    one, other = (torch.cat([each.flatten() for each in output]).float() for output in both)
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))


class _CudaGraphs:
    """Capture one CUDA graph per input shape and replay it, which avoids the cost of launching kernels."""

    def __init__(self, run: Callable[[Tensor], Output]) -> None:
        self._eager = run
        self._graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Output]] = {}
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> Output:
        with self._lock:
            return self._replay(x)

    def _replay(self, x: Tensor) -> Output:
        if x.shape not in self._graphs:
            if len(self._graphs) >= _MAX_GRAPHS["cuda"]:
                return self._eager(x)
            self._graphs[x.shape] = self._capture(x)
        graph, images, output = self._graphs[x.shape]
        images.copy_(x)
        graph.replay()
        return [each.clone() for each in output] if isinstance(output, list) else output.clone()

    def _capture(self, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Output]:
        images = x.clone()
        stream = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            for _ in range(3):  # so that cuDNN chooses its algorithms before the capture
                self._eager(images)
        torch.cuda.current_stream(x.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._eager(images)
        return graph, images, output
