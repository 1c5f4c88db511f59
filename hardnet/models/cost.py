"""Cost of a network, computed from the modules themselves: parameters, multiply-accumulates and CIO.

CIO, convolutional input/output, is the paper's measure of memory traffic: the sum over all convolutions of
the elements of their input and output feature maps (Chao et al., 2019, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from .config import FCHarDNetConfig, NetworkConfig
from .layers import ConvLayer, HarDBlock
from .network import HarDNet
from .segmentation import FCHarDNet


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
def measure_cost(
    config: NetworkConfig, *, height: int = 224, width: int = 224, num_classes: int | None = None, in_chans: int = 3
) -> Cost:
    """Compute what one image (in_chans, height, width), in pixels, costs a network with ``num_classes`` classes.

    ``num_classes`` None means 1000 for a classifier and 19 for the segmentation network. Resizing is not counted.

    Raises:
        ValueError: ``height`` or ``width`` is below the network's smallest size, or a number is out of range.
    """
    with torch.device("meta"):
        model: HarDNet | FCHarDNet
        if isinstance(config, FCHarDNetConfig):
            model = FCHarDNet(config, num_classes=19 if num_classes is None else num_classes, in_chans=in_chans)
        else:
            model = HarDNet(config, num_classes=1000 if num_classes is None else num_classes, in_chans=in_chans)
        x = torch.empty(1, in_chans, height, width)
    runs = _runs(model)
    counters = [_Counter(modules) for _, _, modules in runs]
    output = model.eval()(x)
    counters[-1].output_shape = tuple(output.shape[1:])
    stages = tuple(
        StageCost(name, place, c.output_shape, c.layers, c.params, c.macs, c.cio)
        for (name, place, _), c in zip(runs, counters, strict=True)
    )
    return Cost(config.name, (in_chans, height, width), stages)


def _runs(model: HarDNet | FCHarDNet) -> list[tuple[str, str, list[nn.Module]]]:
    """Divide a network into stem, stages, levels of a decoder, and head: name, place, modules."""
    blocks = [index for index, module in enumerate(model.base) if isinstance(module, HarDBlock)]
    end = len(model.base) - isinstance(model, HarDNet)  # a classifier's head is the last entry of base
    runs = [
        (f"stage {number}" if number else "stem", f"base[{start}:{stop}]", list(model.base[start:stop]))
        for number, (start, stop) in enumerate(pairwise([0, *blocks, end]))
    ]
    if isinstance(model, HarDNet):
        return [*runs, ("head", f"base[{end}]", [model.base[end]])]
    for number, pair in enumerate(zip(model.conv1x1_up, model.denseBlocksUp, strict=True)):
        runs.append((f"up {number + 1}", f"conv1x1_up[{number}], denseBlocksUp[{number}]", list(pair)))
    return [*runs, ("head", "finalConv", [model.finalConv])]


def _layers(module: nn.Module) -> int:
    if isinstance(module, HarDBlock):
        return module.n_layers
    return int(isinstance(module, ConvLayer) or type(module) in (nn.Sequential, nn.Conv2d))  # the latter two: heads


class _Counter:
    """Adds up the cost of every convolution and linear layer that runs below some modules."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.macs = self.cio = 0
        self.output_shape: tuple[int, ...] = ()
        self.layers = sum(map(_layers, modules))
        self.params = sum(parameter.numel() for module in modules for parameter in module.parameters())
        for module in modules:
            for child in module.modules():
                if isinstance(child, (nn.Conv2d, nn.Linear)):
                    child.register_forward_hook(self._count)
        modules[-1].register_forward_hook(self._keep_shape)

    def _keep_shape(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.output_shape = tuple(output.shape[1:])

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module.weight, Tensor)  # noqa: S101 (for the type checker)
        self.macs += output.numel() * module.weight[0].numel()
        if isinstance(module, nn.Conv2d):
            self.cio += inputs[0].numel() + output.numel()
