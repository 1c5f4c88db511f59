"""oneDNN's graph compiler, reached through TorchScript: a folded network compiled for one shape of images.

Each call of one of torch's own oneDNN operators costs some 20 microseconds and lays out the weights anew, which on
small images takes longer than to convolve them. A graph does neither. TorchScript is deprecated: where torch has it no
more, or the compiled graph does not give what the model gives, the model runs as it would without.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .base import Output

_logger = logging.getLogger(__name__)

_MOST_GRAPHS = 4
"""Graphs that are kept, one for a shape; each holds its own layout of the weights."""

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""How much of the largest value a graph may differ from the model."""

_one_at_a_time = threading.Lock()
"""Whether TorchScript uses oneDNN's graphs is a switch of the whole process."""


class OneDnnGraphs:
    """Runs a compiled graph for the first shapes that come twice in a row: (N, C, H, W), channels last -> the output.

    Args:
        folded: what is compiled; its parameters want no gradients.
        otherwise: the same network, for all other shapes.
    """

    def __init__(self, folded: nn.Module, otherwise: Callable[[Tensor], Output]) -> None:
        self._folded, self._otherwise = folded, otherwise
        self._graphs: dict[torch.Size, Callable[[Tensor], Output]] = {}
        self._seen: torch.Size | None = None

    def __call__(self, x: Tensor) -> Output:
        """(N, C, H, W) -> what the model gives for it."""
        x = x.detach()  # a graph is compiled for images that want no gradients
        run = self._graphs.get(x.shape)
        if run is not None:
            return run(x)
        if x.shape != self._seen or len(self._graphs) >= _MOST_GRAPHS:
            self._seen = x.shape
            return self._otherwise(x)
        with _one_at_a_time:
            if x.shape not in self._graphs:
                self._graphs[x.shape] = self._compile(x)
        return self._graphs[x.shape](x)

    def _compile(self, x: Tensor) -> Callable[[Tensor], Output]:
        """Return the graph for the shape of x, or the model as it is where there is none or it differs."""
        try:
            graph = compile_graph(self._folded, x)
            found, wanted = graph(x), self._otherwise(x)
        except (AttributeError, RuntimeError, TypeError) as error:
            _logger.warning("no graph of oneDNN for images of %s, running without: %s", tuple(x.shape), error)
            return self._otherwise
        if not _difference(found, wanted) <= _TOLERANCE[x.dtype]:  # nor where either is not a number
            _logger.warning("the graph of oneDNN for images of %s is not exact, running without", tuple(x.shape))
            return self._otherwise
        return graph


def compile_graph(model: nn.Module, x: Tensor) -> Callable[[Tensor], Output]:
    """Return a folded model compiled for the shape of x.

    Raises:
        AttributeError, RuntimeError, TypeError: torch has no such compiler, or the compiler fails.
    """
    before = torch.jit.onednn_fusion_enabled()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's deprecation, and checks of the shape, which stays
        torch.jit.enable_onednn_fusion(True)
        try:
            # What torch.jit.trace makes belongs to the process and is never freed. This belongs to who holds it.
            traced, _ = torch._C._create_graph_by_tracing(lambda x: model(x), (x,), lambda tensor: "", True, False)
            graph: Callable[[Tensor], Output] = torch._C._create_function_from_graph("forward", traced)
            for _ in range(2):  # the first call looks at the tensors, the second compiles
                graph(x)
        finally:
            torch.jit.enable_onednn_fusion(before)
    return graph


def _difference(found: Output, wanted: Output) -> float:
    """Return the largest difference as a share of the largest value."""
    one, other = (torch.cat([each.flatten() for each in _all(output)]).float() for output in (found, wanted))
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))


def _all(output: Output) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)
