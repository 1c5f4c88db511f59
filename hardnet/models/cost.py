"""Cost of a network, computed from the modules themselves: parameters, multiply-accumulates and CIO.

CIO, convolutional input/output, is the paper's measure of memory traffic: the sum over all convolutions of
the elements of their input and output feature maps (Chao et al., 2019, section 3.2).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from .config import HarDNetConfig
from .layers import HarDBlock
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
    """Layers as the paper counts them: convolutions that are not depthwise, and the linear layer."""
    params: int
    """Trained numbers, those of the normalisation included."""
    macs: int
    """Multiply-accumulates of the convolutions and the linear layer."""
    cio: int
    """Elements of the input and output feature maps of the convolutions."""


@dataclass(frozen=True)
class Cost:
    """The cost of a model for one image of ``input_shape``."""

    model: str
    input_shape: tuple[int, int, int]
    """(C, H, W), in pixels."""
    stages: tuple[StageCost, ...]
    """Stem, stages and head."""
    total: StageCost


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
    calls: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # input and output of every module

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] = (inputs[0], output)

    for module in model.modules():
        module.register_forward_hook(record)
    model(x)
    stages = tuple(_add_up(*part, calls) for part in _parts(model))
    return Cost(config.name, (model.in_chans, height, width), stages, _add_up("total", "", [model], calls))


def _parts(model: HarDNet | FCHarDNet) -> Iterator[tuple[str, str, Sequence[nn.Module]]]:
    """Divide a network into stem, stages, levels of a decoder, and head: name, place and modules."""
    blocks = [index for index, module in enumerate(model.base) if isinstance(module, HarDBlock)]
    end = len(model.base) - isinstance(model, HarDNet)  # a classifier's head is the last entry of base
    for number, (start, stop) in enumerate(pairwise([0, *blocks, end])):
        yield f"stage {number}" if number else "stem", f"base[{start}:{stop}]", list(model.base[start:stop])
    if isinstance(model, FCHarDNet):
        for level, pair in enumerate(zip(model.conv1x1_up, model.denseBlocksUp, strict=True)):
            yield f"up {level + 1}", f"conv1x1_up[{level}], denseBlocksUp[{level}]", pair
    yield "head", model.config.head, [model.get_submodule(model.config.head)]


def _add_up(
    name: str, place: str, modules: Sequence[nn.Module], calls: dict[nn.Module, tuple[Tensor, Tensor]]
) -> StageCost:
    """Add up the cost of every convolution and linear layer in some modules, the last of which gives the output."""
    children = (child for module in modules for child in module.modules())
    layers = [child for child in children if isinstance(child, (nn.Conv2d, nn.Linear))]
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    return StageCost(
        name,
        place,
        output_shape=tuple(calls[modules[-1]][1].shape[1:]),
        layers=len(layers) - sum(conv.groups > 1 for conv in convs),
        params=sum(parameter.numel() for module in modules for parameter in module.parameters()),
        macs=sum(calls[layer][1].numel() * layer.weight[0].numel() for layer in layers),
        cio=sum(tensor.numel() for conv in convs for tensor in calls[conv]),
    )
