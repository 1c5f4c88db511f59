"""Cost of a network, computed from the modules themselves: parameters, multiply-accumulates and CIO.

CIO, convolutional input/output, is the paper's measure of memory traffic: the sum over all convolutions of
the elements of their input and output feature maps (Chao et al., 2019, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from .config import HarDNetConfig
from .layers import ConvLayer, HarDBlock
from .network import HarDNet
from .segmentation import FCHarDNet, build_network


@dataclass(frozen=True)
class StageCost:
    """The cost of some consecutive modules of a network for one image."""

    name: str
    modules: str
    """Slice of the network that holds them, such as ``base[0:3]``."""
    output_shape: tuple[int, ...]
    """Shape without the batch dimension: (C, H, W), or (classes,) for a classifier's head."""
    layers: int
    """Layers as the paper counts them: a depthwise-separable pair is one, a strided depthwise convolution none."""
    params: int
    """Trained numbers, those of the normalisation included."""
    macs: int
    """Multiply-accumulates of the convolutions and the linear layer."""
    cio: int
    """Elements of the input and output feature maps of the convolutions."""

    @property
    def macs_per_cio(self) -> float:
        """MACs over CIO, computation per memory traffic; 0 without convolutions."""
        return self.macs / self.cio if self.cio else 0.0


@dataclass(frozen=True)
class Cost:
    """The cost of a model for one image of ``input_shape``, stage by stage."""

    model: str
    input_shape: tuple[int, int, int]
    """(C, H, W), in pixels."""
    stages: tuple[StageCost, ...]
    """Stem, stages and head."""

    @property
    def total(self) -> StageCost:
        """The sum over the stages."""
        sums = {name: sum(getattr(s, name) for s in self.stages) for name in ("layers", "params", "macs", "cio")}
        return StageCost("total", "", self.stages[-1].output_shape, **sums)


@cache
def measure_cost(config: HarDNetConfig, *, height: int = 224, width: int = 224, **options: int) -> Cost:
    """Compute what one image (in_chans, height, width), in pixels, costs a network; resizing is not counted.

    Args:
        config: of a classifier or segmentation network.
        height: of the image.
        width: of the image.
        options: ``num_classes`` and ``in_chans`` of the network, if they are others than its own.

    Raises:
        ValueError: ``height`` or ``width`` is below the network's smallest size, or a number is out of range.
    """
    with torch.device("meta"):
        model = build_network(config, **options).eval()
        x = torch.empty(1, model.in_chans, height, width)
    counters = [_Counter(*part) for part in _parts(model)]
    output = model(x)
    counters[-1].output_shape = tuple(output.shape[1:])
    return Cost(config.name, (model.in_chans, height, width), tuple(counter.stage() for counter in counters))


def _parts(model: HarDNet | FCHarDNet) -> Iterator[tuple[str, str, Iterable[nn.Module]]]:
    """Divide a network into stem, stages, levels of a decoder, and head: name, place and modules."""
    blocks = [index for index, module in enumerate(model.base) if isinstance(module, HarDBlock)]
    end = len(model.base) - isinstance(model, HarDNet)  # a classifier's head is the last entry of base
    for number, (start, stop) in enumerate(pairwise([0, *blocks, end])):
        yield f"stage {number}" if number else "stem", f"base[{start}:{stop}]", model.base[start:stop]
    if isinstance(model, FCHarDNet):
        for level, pair in enumerate(zip(model.conv1x1_up, model.denseBlocksUp, strict=True)):
            yield f"up {level + 1}", f"conv1x1_up[{level}], denseBlocksUp[{level}]", pair
    yield "head", model.config.head, [model.get_submodule(model.config.head)]


class _Counter:
    """Adds up the cost of every convolution and linear layer that runs below some modules."""

    def __init__(self, name: str, place: str, modules: Iterable[nn.Module]) -> None:
        self.name, self.place = name, place
        self.layers = self.params = self.macs = self.cio = 0
        self.output_shape: tuple[int, ...] = ()
        for module in modules:
            self.layers += getattr(module, "n_layers", int(isinstance(module, (ConvLayer, nn.Conv2d, nn.Linear))))
            self.params += sum(parameter.numel() for parameter in module.parameters())
            for child in module.modules():
                if isinstance(child, (nn.Conv2d, nn.Linear)):
                    child.register_forward_hook(self._count)
            module.register_forward_hook(self._keep_shape)

    def stage(self) -> StageCost:
        """Return the sums."""
        return StageCost(self.name, self.place, self.output_shape, self.layers, self.params, self.macs, self.cio)

    def _keep_shape(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.output_shape = tuple(output.shape[1:])

    def _count(self, module: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.macs += output.numel() * module.weight[0].numel()
        if isinstance(module, nn.Conv2d):
            self.cio += inputs[0].numel() + output.numel()
