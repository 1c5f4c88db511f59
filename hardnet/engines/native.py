"""Engines that need nothing but torch: the model as it is, and the model folded, fused and compiled to graphs."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..models.layers import ConvLayer, DWConvLayer
from ..models.network import ImageModule
from .base import Output, Plan, Run
from .folding import convolution_name, fold
from .onednn_graph import OneDnnGraphs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_MOST_GRAPHS = 8
"""CUDA graphs that are kept, one per shape; each holds the memory of its activations."""


def build_eager(model: ImageModule, plan: Plan, example: Tensor | None, calibration: list[Tensor]) -> Run:
    """Return the model itself, a copy of it."""
    eager = copy.deepcopy(model).eval().requires_grad_(False)

    def run(x: Tensor) -> Output:
        with cpu_threads(plan.threads):
            output: Output = eager(x)
        return output

    return run


def build(model: ImageModule, plan: Plan, example: Tensor | None, calibration: list[Tensor]) -> Run:
    """Return the model folded, in channels-last order, as graphs; else with its activations fused where torch can."""
    dtype = DTYPES[plan.precision]
    folded: nn.Module = fold(model).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if plan.device.type == "cuda":
        return _CudaGraphs(in_channels_last(folded, dtype))
    fused = fuse(copy.deepcopy(folded, {id(each): each for each in folded.parameters()}))  # the weights are shared
    prepared = in_channels_last(OneDnnGraphs(folded, fused) if _onednn_works(dtype) else fused, dtype)

    def run(x: Tensor) -> Output:
        with cpu_threads(plan.threads):
            return prepared(x)

    return run


def in_channels_last(model: Callable[[Tensor], Any], dtype: torch.dtype) -> Run:
    """Return a function from float32 images in any order to float32 output."""

    def run(x: Tensor) -> Output:
        output = model(x.to(dtype=dtype, memory_format=torch.channels_last))
        return [each.float() for each in output] if isinstance(output, (list, tuple)) else output.float()

    return run


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads meanwhile."""
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
    """Replace, in place, a folded model's convolutions and activations by oneDNN's fused ones, where torch has them."""
    works = _onednn_works(next(folded.parameters()).dtype)
    folded.to(memory_format=torch.channels_last)
    if works:
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
    raise TypeError(f"no fused form of {type(activation).__name__} is known")


def _onednn_works(dtype: torch.dtype) -> bool:
    """Try the fused call, which is not part of torch's stable interface, on a small convolution."""
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


class _CudaGraphs:
    """Replays one captured CUDA graph per shape of input, so that launching kernels costs the CPU nothing."""

    def __init__(self, run: Callable[[Tensor], Output]) -> None:
        self._eager = run
        self._graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Output]] = {}
        self._one_at_a_time = threading.Lock()

    def __call__(self, x: Tensor) -> Output:
        with self._one_at_a_time:
            return self._replay(x)

    def _replay(self, x: Tensor) -> Output:
        if x.shape not in self._graphs:
            if len(self._graphs) >= _MOST_GRAPHS:
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
            for _ in range(3):  # cuDNN chooses its algorithms before the capture
                self._eager(images)
        torch.cuda.current_stream(x.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._eager(images)
        return graph, images, output
