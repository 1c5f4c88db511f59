"""The engine "torch": the folded model in channels-last order, on CPUs with graphs of oneDNN.

Each call of a oneDNN operator of torch costs about 20 microseconds and reorders the weights again, which on small
images takes longer than the convolution. A graph of oneDNN does neither. It is reached through TorchScript, which is
deprecated: where torch does not have it, or where the graph is not exact, the fused operators run instead.
"""

import copy
import logging
import threading
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..models.network import ImageModule
from . import torch_private
from .base import EngineSettings, Output, Run, difference, map_levels, random_images
from .folding import fold, plain_layers

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

MAX_GRAPHS = 4  # one per shape; each holds its own copy of the weights
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference of a graph and of fused operators from torch's, relative to the largest value."""


def build(model: ImageModule, settings: EngineSettings, calibration: list[Tensor]) -> Run:
    """Return the folded model in channels-last order: on CPUs as graphs, or with fused operators, if torch has them."""
    dtype = DTYPES[settings.precision]
    folded: nn.Module = fold(model).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run: Run = folded
    if settings.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        shared = {id(weight): weight for weight in folded.parameters()}
        sample = random_images(1, model.in_chans, 64, 96, False).to(dtype, memory_format=torch.channels_last)
        fused = _exact(lambda: fuse(copy.deepcopy(folded, shared)), folded, sample, "no fused convolutions of oneDNN")
        run = folded if fused is folded else OneDnnGraphs(folded, fused, settings.compile_after)

    def in_channels_last(x: Tensor) -> Output:
        return map_levels(Tensor.float, run(x.to(dtype=dtype, memory_format=torch.channels_last)))

    return in_channels_last


def fuse(folded: nn.Module) -> nn.Module:
    """Replace, in place, a folded model's convolutions and activations by fused operators of oneDNN."""
    for layer in list(folded.modules()):
        name, *rest = plain_layers(layer)
        conv = getattr(layer, name, None)
        if not isinstance(conv, nn.Conv2d) or isinstance(conv.padding, str):
            continue
        if conv.padding_mode == "zeros" and rest in ([], ["relu"]):
            setattr(layer, name, torch_private.FusedConv(conv, getattr(layer, "relu", None)))
            if rest:
                del layer.relu
    return folded


def _exact(make: Callable[[], Run], otherwise: Run, x: Tensor, absence: str) -> Run:
    """Return what ``make`` returns; ``otherwise``, with a warning, if it fails or computes something else for x."""
    try:
        run = make()
        if difference(run(x), otherwise(x)) <= _TOLERANCE[x.dtype]:  # false for NaN as well
            return run
        reason = "it is not exact"
    except (AttributeError, RuntimeError, TypeError) as failure:  # what torch raises that has no such function
        reason = str(failure).strip().split("\n")[-1]  # TorchScript puts a traceback of its own before it
    logger.warning("%s, running without: %s", absence, reason)
    return otherwise


class OneDnnGraphs:
    """Run a compiled graph for shapes that come repeatedly: (N, C, H, W), channels last -> output of the model.

    ``otherwise`` is the same network, for all other shapes. A graph is compiled after ``compile_after`` consecutive
    images of a shape, and at least one batch; the parameters must not require gradients.
    """

    def __init__(self, folded: nn.Module, otherwise: Run, compile_after: int = 0) -> None:
        self._folded, self._otherwise, self._compile_after = folded, otherwise, compile_after
        self._most, self._lock = MAX_GRAPHS, threading.Lock()
        self._graphs: dict[torch.Size, Run] = {}
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
                absence = f"no graph of oneDNN for images of {tuple(x.shape)}"
                compiled = partial(torch_private.compile_graph, self._folded, x)
                self._graphs[x.shape] = _exact(compiled, self._otherwise, x, absence)
                if self._graphs[x.shape] is self._otherwise:
                    self._most = 0  # one warning is enough: the next shape would most likely fail as well
        return self._graphs[x.shape](x)
