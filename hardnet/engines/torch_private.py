"""The private functions of torch that the engines use; ``docs/architecture.md`` says what happens without each."""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_LOCK = threading.Lock()
"""Held while TorchScript's use of oneDNN's graphs, a setting of the whole process, is changed."""


class FusedConv(nn.Module):
    """Convolution, bias and activation in one oneDNN call: (N, C, H, W) -> (N, out, H / stride, W / stride), CPU.

    The activation is ReLU, ReLU6 or None.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.detach()
        name = {type(None): "none", nn.ReLU6: "hardtanh"}.get(type(activation), "relu")
        numbers = [0.0, 6.0] if name == "hardtanh" else []
        self.arguments = (conv.padding, conv.stride, conv.dilation, conv.groups, name, numbers, "")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out, H / stride, W / stride)."""
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.arguments)
        return output


def compile_graph(model: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    """Return a folded model compiled by oneDNN for the shape of x; AttributeError if torch has no compiler."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; checks of the shape become constants
        before = torch.jit.onednn_fusion_enabled()  # type: ignore[no-untyped-call]
        torch.jit.enable_onednn_fusion(True)
        try:
            # torch.jit.trace would keep the graph until the process ends.
            traced, _ = torch._C._create_graph_by_tracing(lambda x: model(x), (x,), lambda tensor: "", True, False)
            graph: Callable[[Tensor], Any] = torch._C._create_function_from_graph("forward", traced)
            for _ in range(2):  # the first call profiles, the second compiles
                graph(x)
        finally:
            torch.jit.enable_onednn_fusion(before)
    return graph


def has_hooks(module: nn.Module) -> bool:
    """Return whether functions were registered that run before or after the forward pass of a module."""
    return any(getattr(module, name, None) for name in ("_forward_hooks", "_forward_pre_hooks"))
