"""The engine "torch": the folded model in channels-last order, on CPUs with graphs of oneDNN.

Each call of a oneDNN operator of torch costs about 20 microseconds and reorders the weights again, which on small
images takes longer than the convolution. A graph of oneDNN does neither. It is reached through TorchScript, which is
deprecated: where torch does not have it, or where the graph is not exact, the fused operators run instead.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..models.network import ImageModule
from . import torch_private
from .base import EngineSettings, Output, Run, difference, map_levels, random_images
from .folding import fold, plain_layers

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_MAX_GRAPHS = 4
"""Graphs that are kept, one per shape. Each holds its own copy of the weights."""

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference between a graph and the model, relative to the largest value."""


def build(model: ImageModule, settings: EngineSettings, calibration: list[Tensor]) -> Run:
    """Return the folded model in channels-last order: on CPUs as graphs, or with fused operators, if torch has them."""
    dtype = DTYPES[settings.precision]
    folded: nn.Module = fold(model).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run: Callable[[Tensor], Output] = folded
    if settings.device.type == "cpu" and _onednn_works(dtype):
        shared = {id(weight): weight for weight in folded.parameters()}
        run = OneDnnGraphs(folded, fuse(copy.deepcopy(folded, shared)), settings.compile_after)

    def in_channels_last(x: Tensor) -> Output:
        return map_levels(Tensor.float, run(x.to(dtype=dtype, memory_format=torch.channels_last)))

    return in_channels_last


def fuse(folded: nn.Module) -> nn.Module:
    """Replace, in place, a folded model's convolutions and activations by fused operators of oneDNN."""
    for layer in list(folded.modules()):
        name, *rest = plain_layers(layer)
        conv = getattr(layer, name, None)
        if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            continue
        if rest in ([], ["relu"]):
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
        self.weight: Tensor
        self.bias: Tensor | None
        self.register_buffer("weight", conv.weight.detach().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())
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
    x, weight = random_images(1, 3, 9, 9, False).to(dtype), random_images(8, 3, 3, 3, False).to(dtype)
    try:
        result = torch_private.fused_convolution(x, weight, None, [0, 0], [1, 1], [1, 1], 1, "hardtanh", [0.0, 6.0], "")
        works, reason = difference(result, functional.conv2d(x, weight).clamp(0, 6)) < 1e-2, "it is not exact"
    except (AttributeError, RuntimeError, TypeError) as error:
        works, reason = False, str(error)
    if not works:
        logger.warning("torch has no fused convolutions of oneDNN here, running without: %s", reason)
    return works


class OneDnnGraphs:
    """Run a compiled graph for shapes that come repeatedly: (N, C, H, W), channels last -> output of the model.

    ``otherwise`` is the same network, for all other shapes. A graph is compiled after ``compile_after`` consecutive
    images of a shape, and at least one batch; the parameters must not require gradients.
    """

    def __init__(self, folded: nn.Module, otherwise: Callable[[Tensor], Output], compile_after: int = 0) -> None:
        self._folded, self._otherwise, self._compile_after = folded, otherwise, compile_after
        self._most, self._lock = _MAX_GRAPHS, threading.Lock()
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
            if difference(graph(x), self._otherwise(x)) <= _TOLERANCE[x.dtype]:  # false for NaN as well
                return graph
            reason = "it is not exact"
        except (AttributeError, RuntimeError, TypeError) as failure:
            reason = str(failure).strip().split("\n")[-1]  # TorchScript puts a traceback of its own before it
            if isinstance(failure, AttributeError):
                self._most = 0  # this torch does not have the compiler
        logger.warning("no graph of oneDNN for images of %s, running without: %s", tuple(x.shape), reason)
        return self._otherwise
