"""Engines that need only torch: "eager", the model itself, and "torch", the folded model with oneDNN or CUDA graphs.

Each call of a oneDNN operator of torch costs about 20 microseconds and reorders the weights again, which on small
images takes longer than the convolution. A graph of oneDNN does neither. It is reached through TorchScript, which is
deprecated: where torch does not have it, or where the graph is not exact, the fused operators run instead.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..models.network import ImageModule
from . import torch_private
from .base import EngineSettings, Output, Run, difference
from .folding import fold, plain_layers

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_MAX_GRAPHS = {"cpu": 4, "cuda": 8}
"""Graphs that are kept, one per shape. On CPUs each holds its own copy of the weights, on CUDA its activations."""

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference between a graph and the model, relative to the largest value."""


def build_eager(model: ImageModule, settings: EngineSettings, calibration: list[Tensor]) -> Run:
    """Return the model."""
    return model


def build(model: ImageModule, settings: EngineSettings, calibration: list[Tensor]) -> Run:
    """Return the folded model in channels-last order: as graphs, or with fused operators, where torch has them."""
    dtype = DTYPES[settings.precision]
    folded: nn.Module = fold(model).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.device.type == "cuda":
        return _CudaGraphs(in_channels_last(folded, dtype))
    if not _onednn_works(dtype):
        return in_channels_last(folded, dtype)
    fused = fuse(copy.deepcopy(folded, {id(weight): weight for weight in folded.parameters()}))  # shares the weights
    return in_channels_last(OneDnnGraphs(folded, fused, settings.compile_after), dtype)


def in_channels_last(model: Callable[[Tensor], Any], dtype: torch.dtype) -> Run:
    """Return a function from float32 images in any memory format to float32 output."""

    def run(x: Tensor) -> Output:
        output = model(x.to(dtype=dtype, memory_format=torch.channels_last))
        return [level.float() for level in output] if isinstance(output, (list, tuple)) else output.float()

    return run


def fuse(folded: nn.Module) -> nn.Module:
    """Replace, in place, a folded model's convolutions and activations by fused operators of oneDNN."""
    for layer in list(folded.modules()):
        name, *rest = plain_layers(layer)
        conv = getattr(layer, name, None)
        if not isinstance(conv, nn.Conv2d) or rest not in ([], ["relu"]) or conv.padding_mode != "zeros":
            continue
        if isinstance(conv.padding, tuple):
            setattr(layer, name, FusedConv(conv, getattr(layer, "relu", None)))
            if rest:
                del layer.relu
    return folded


class FusedConv(nn.Module):
    """Convolution, bias and activation in one oneDNN call: (N, C, H, W) -> (N, out, H / stride, W / stride), CPU.

    The activation is ReLU, ReLU6 or None.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        bias = conv.bias.detach() if conv.bias is not None else None
        self.weight: Tensor
        self.bias: Tensor | None
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        name = {type(None): "none", nn.ReLU6: "hardtanh"}.get(type(activation), "relu")
        numbers = [0.0, 6.0] if name == "hardtanh" else []
        self.arguments = (conv.padding, conv.stride, conv.dilation, conv.groups, name, numbers, "")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out, H / stride, W / stride)."""
        return torch_private.fused_convolution(x, self.weight, self.bias, *self.arguments)


def _onednn_works(dtype: torch.dtype) -> bool:
    """Try the fused operator, which is not part of torch's stable interface, on a small convolution."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False, device="meta")
    conv.weight = nn.Parameter(torch.randn(conv.weight.shape, generator=generator).to(dtype), requires_grad=False)
    x = torch.randn(1, 3, 9, 9, generator=generator).to(dtype)
    try:
        with torch.no_grad():
            works = difference(FusedConv(conv, nn.ReLU6())(x), conv(x).clamp(0, 6)) < 1e-2
        reason = "it is not exact"
    except (AttributeError, RuntimeError, TypeError) as error:
        works, reason = False, str(error)
    if not works:
        logger.warning("torch has no fused convolutions of oneDNN here, running without: %s", reason)
    return works


class OneDnnGraphs:
    """Run a compiled graph for shapes that come repeatedly: (N, C, H, W), channels last -> output of the model.

    Args:
        folded: the network to compile; its parameters must not require gradients.
        otherwise: the same network, for all other shapes.
        compile_after: compile for a shape after this many consecutive images of it, and at least one batch.
    """

    def __init__(self, folded: nn.Module, otherwise: Callable[[Tensor], Output], compile_after: int = 0) -> None:
        self._folded, self._otherwise, self._compile_after = folded, otherwise, compile_after
        self._most, self._lock = _MAX_GRAPHS["cpu"], threading.Lock()
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
        if self._images <= max(self._compile_after, len(x)) or len(self._graphs) >= self._most:
            return self._otherwise(x)
        with self._lock:
            if x.shape not in self._graphs:
                self._graphs[x.shape] = self._compile(x)
        return self._graphs[x.shape](x)

    def _compile(self, x: Tensor) -> Callable[[Tensor], Output]:
        """Return the graph for the shape of x, or the model if the compiler fails or the graph is not exact."""
        try:
            graph = torch_private.compile_graph(self._folded, x)
            error = difference(graph(x), self._otherwise(x))
        except (AttributeError, RuntimeError, TypeError) as failure:
            reason = str(failure).strip().split("\n")[-1]  # TorchScript puts a traceback of its own before it
            logger.warning("no graph of oneDNN for images of %s, running without: %s", tuple(x.shape), reason)
            if isinstance(failure, AttributeError):
                self._most = 0  # this torch does not have the compiler
            return self._otherwise
        if not error <= _TOLERANCE[x.dtype]:  # true for NaN as well
            logger.warning("the graph of oneDNN for images of %s is not exact, running without", tuple(x.shape))
            return self._otherwise
        return graph


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
        return [level.clone() for level in output] if isinstance(output, list) else output.clone()

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
