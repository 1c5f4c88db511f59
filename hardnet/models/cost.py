"""Cost of a network, computed from the modules themselves: parameters, multiply-accumulates and CIO.

CIO, convolutional input/output, is the paper's measure of memory traffic: the sum over all convolutions of
the elements of their input and output feature maps (Chao et al., 2019, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from .config import HarDNetConfig, head_index, stage_indices
from .network import HarDNet, check_images


@dataclass(frozen=True)
class StageCost:
    """The cost of a run of ``HarDNet.base`` for one image."""

    name: str
    indices: tuple[int, int]
    """First index in ``base``, and one past the last."""
    output_shape: tuple[int, ...]
    """Without the batch dimension: (C, H, W), or (classes,) for the head."""
    layers: int
    """As the paper counts: a depthwise-separable pair is one layer, a strided depthwise convolution none."""
    params: int
    """Trained numbers, those of the normalisation included."""
    macs: int
    """Multiply-accumulates of the convolutions and the linear layer."""
    cio: int
    """Elements of the input and output feature maps of the convolutions."""

    @property
    def macs_per_cio(self) -> float:
        """MACs over CIO, computation per memory traffic; 0 where there is no convolution."""
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
        first, last = self.stages[0], self.stages[-1]
        sums = {name: sum(getattr(s, name) for s in self.stages) for name in ("layers", "params", "macs", "cio")}
        return StageCost("total", (first.indices[0], last.indices[1]), last.output_shape, **sums)


@cache
def measure_cost(
    config: HarDNetConfig, *, height: int = 224, width: int = 224, num_classes: int = 1000, in_chans: int = 3
) -> Cost:
    """Compute what one image (in_chans, height, width), in pixels, costs a variant with ``num_classes`` logits.

    Raises:
        ValueError: ``height`` or ``width`` is below 32 pixels, or a number is out of range.
    """
    with torch.device("meta"):
        model = HarDNet(config, num_classes=num_classes, in_chans=in_chans).eval()
        x = torch.empty(1, in_chans, height, width)
    check_images(x, config.name, in_chans)
    stages = []
    for name, first, stop, layers in _runs(config):
        run = model.base[first:stop]
        counter = _Counter(run)
        x = run(x)
        params = sum(parameter.numel() for parameter in run.parameters())
        stages.append(StageCost(name, (first, stop), tuple(x.shape[1:]), layers, params, counter.macs, counter.cio))
    return Cost(config.name, (in_chans, height, width), tuple(stages))


def _runs(config: HarDNetConfig) -> list[tuple[str, int, int, int]]:
    """Divide ``base`` into stem, stages and head: name, first index, one past the last, layers."""
    stages = stage_indices(config)
    head = head_index(config)
    stops = [*(stage.block for stage in stages[1:]), head]
    runs = [("stem", 0, stages[0].block, 2)]
    for number, (stage, stop, layers) in enumerate(zip(stages, stops, config.block_layers, strict=True), 1):
        runs.append((f"stage {number}", stage.block, stop, layers + 1))
    return [*runs, ("head", head, head + 1, 1)]


class _Counter:
    """Adds up the cost of every convolution and linear layer that runs below a module."""

    def __init__(self, module: nn.Module) -> None:
        self.macs = self.cio = 0
        for child in module.modules():
            if isinstance(child, (nn.Conv2d, nn.Linear)):
                child.register_forward_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module.weight, Tensor)  # noqa: S101 (for the type checker)
        self.macs += output.numel() * module.weight[0].numel()
        if isinstance(module, nn.Conv2d):
            self.cio += inputs[0].numel() + output.numel()
