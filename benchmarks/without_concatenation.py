"""HarDBlocks without concatenations, block by block and engine by engine, against the blocks as they are.

    python benchmarks/without_concatenation.py --json benchmarks/results/without-concatenation.json

A convolution of a concatenation is a sum of convolutions: conv(cat(a, b)) = conv_a(a) + conv_b(b). So the inputs of a
layer need not be brought together. Two forms are tried:

- summed: a convolution for each link, each but the first adding to what the one before gave;
- merged: what the layers want of one input comes from one convolution with all their filters, and each layer adds up
  its parts (hardnet/engines/folding.py, which the inductor engine uses).

The block's last concatenation, its output, stays. Each form is checked to compute what the block computes. The forms
take turns, and the median over the rounds counts.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from forms import Run, command, compiled, medians
from torch import Tensor, nn
from torch.nn import functional

import hardnet
from hardnet.engines import fold
from hardnet.engines.folding import MergedBlock, parts_of
from hardnet.models.layers import HarDBlock

ENGINES = ("torch", "inductor", "openvino")


class Summed(nn.Module):
    """A folded block with a convolution for each link: (N, C, H, W) -> (N, out, H, W)."""

    def __init__(self, block: HarDBlock) -> None:
        super().__init__()
        layers = parts_of(block)
        self.links, self.kept = block.links, block.kept
        self.after = nn.ModuleList(layer.after for layer in layers)
        self.weights = nn.ModuleList(nn.ParameterList(map(_laid_out, layer.weights.values())) for layer in layers)
        self.biases = nn.ParameterList(nn.Parameter(layer.bias, requires_grad=False) for layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out, H, W)."""
        outputs = [x]
        for links, weights, bias, after in zip(self.links, self.weights, self.biases, self.after, strict=True):
            padding = weights[0].shape[2] // 2
            total = functional.conv2d(outputs[links[0]], weights[0], bias, padding=padding)
            for link, weight in zip(links[1:], weights[1:], strict=True):
                total = total + functional.conv2d(outputs[link], weight, padding=padding)
            outputs.append(after(total))
        return torch.cat([outputs[n] for n in self.kept], 1)


def _laid_out(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)


def forms(block: HarDBlock, engine: str, example: Tensor) -> dict[str, Run]:
    """Return the block and its two other forms, as the engine runs them."""
    folded = fold(block).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    modules: dict[str, nn.Module] = {"as it is": folded, "summed": Summed(folded), "merged": MergedBlock(folded)}
    return {name: compiled(module.eval(), engine, example) for name, module in modules.items()}


def inputs_of_blocks(model: hardnet.HarDNet, size: int) -> dict[str, Tensor]:
    """Return what each block gets where the model gets an image of this size."""
    x, found = torch.rand(1, 3, size, size), {}
    for index, layer in enumerate(model.base[:-1]):
        if isinstance(layer, HarDBlock):
            found[f"base.{index}"] = x.contiguous(memory_format=torch.channels_last)
        x = layer(x)
    return found


def rows_of(name: str, engine: str, size: int, rounds: int) -> list[dict[str, Any]]:
    """Measure the blocks of one network in one engine, and add them up."""
    model = hardnet.create_model(name).eval()
    rows: list[dict[str, Any]] = []
    sums = {"as it is": 0.0, "summed": 0.0, "merged": 0.0}
    best = 0.0
    for place, x in inputs_of_blocks(model, size).items():
        block = cast(HarDBlock, model.get_submodule(place))
        middle = medians(forms(block, engine, x), x, block(x), rounds)
        sums = {form: sums[form] + middle[form] for form in sums}
        best += min(middle.values())
        rows.append({"model": name, "engine": engine, "block": place, **_figures(middle)})
    rows.append({"model": name, "engine": engine, "block": "all, each in its best form", **_figures(sums, best)})
    return rows


def _figures(middle: dict[str, float], best: float | None = None) -> dict[str, Any]:
    shown = {"as it is, ms": round(middle["as it is"], 2)}
    for form in ("summed", "merged"):
        shown[f"{form}, times as fast"] = round(middle["as it is"] / middle[form], 2)
    return shown | {"best, times as fast": round(middle["as it is"] / (best or min(middle.values())), 2)}


if __name__ == "__main__":
    command("without concatenation", str(__doc__), ENGINES, rows_of, rounds=9)
