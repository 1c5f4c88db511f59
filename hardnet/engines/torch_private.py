"""The private functions of torch that the engines use; ``docs/architecture.md`` says what happens without each."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.devices import cpu_flags

logger = logging.getLogger(__name__)

_LOCK = threading.Lock()
"""Held while TorchScript's use of oneDNN's graphs, a setting of the whole process, is changed."""


def fused_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    """Convolution, bias and activation in one oneDNN call: (N, C, H, W) -> (N, out, H / stride, W / stride), CPU.

    ``arguments`` are padding, stride, dilation, groups, the activation's name, its numbers and its algorithm.
    """
    output: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *arguments)
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


def cpu_has_bf16() -> bool:
    """Return whether the processor computes in bf16."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError) as error:
        logger.warning("torch does not say whether the processor has bf16, the system is asked instead: %s", error)
        return bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def has_hooks(module: nn.Module) -> bool:
    """Return whether functions were registered that run before or after the forward pass of a module."""
    return any(getattr(module, name, None) for name in ("_forward_hooks", "_forward_pre_hooks"))
