"""Other ways to compute two kinds of convolution, network by network, in the two engines that are torch's own.

    python benchmarks/convolution_forms.py --json benchmarks/results/convolution-forms.json

- 1x1 as products: a 1x1 convolution is a matrix product over the channels of every pixel, and given to torch as one.
- depthwise as sums: a depthwise 3x3 convolution is the sum of nine shifted and weighted images, of which inductor makes
  one loop, together with what stands around it.

Each form is checked to compute what the network computes. The forms take turns, and the median over the rounds counts.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from forms import Run, command, compiled, medians
from torch import Tensor, nn
from torch.nn import functional

import hardnet
from hardnet.engines import fold

ENGINES = ("torch", "inductor")
FORMS = ("as it is", "1x1 as products", "depthwise as sums")


class Product(nn.Module):
    """A 1x1 convolution as a matrix product: (N, C, H, W) -> (N, out, H, W)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach()[:, :, 0, 0].contiguous(), requires_grad=False)
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out, H, W)."""
        return functional.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class Shifted(nn.Module):
    """A depthwise 3x3 convolution, padded by 1, as a sum: (N, C, H, W) -> (N, C, H / stride, W / stride)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.stride = conv.stride[0]
        self.weight = nn.Parameter(conv.weight.detach()[:, 0].permute(1, 2, 0).contiguous(), requires_grad=False)
        self.bias = cast(nn.Parameter, conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H / stride, W / stride)."""
        rows, columns = ((length - 1) // self.stride for length in x.shape[2:])
        bordered = functional.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
        total: Tensor = self.bias
        for i in range(3):
            below = slice(i, i + self.stride * rows + 1, self.stride)
            for j in range(3):
                total = total + bordered[:, below, j : j + self.stride * columns + 1 : self.stride] * self.weight[i, j]
        return total.permute(0, 3, 1, 2)


def in_form(model: hardnet.HarDNet, form: str) -> nn.Module:
    """Return the folded network with its convolutions in this form."""
    folded = fold(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parent in list(folded.modules()):
        for name, conv in list(parent.named_children()):
            if not isinstance(conv, nn.Conv2d):
                continue
            if form == "1x1 as products" and conv.kernel_size == (1, 1):
                setattr(parent, name, Product(conv))
            if form == "depthwise as sums" and conv.groups > 1:
                setattr(parent, name, Shifted(conv))
    return cast(nn.Module, folded)


def rows_of(name: str, engine: str, size: int, rounds: int) -> list[dict[str, Any]]:
    """Measure one network in one engine."""
    model = hardnet.create_model(name).eval()
    x = torch.rand(1, 3, size, size).contiguous(memory_format=torch.channels_last)
    runs: dict[str, Run] = {}
    for form in FORMS:
        module = in_form(model, form)
        if form == FORMS[0] or any(isinstance(each, (Product, Shifted)) for each in module.modules()):
            runs[form] = compiled(module, engine, x)
    middle = medians(runs, x, model(x), rounds)
    row: dict[str, Any] = {"model": name, "engine": engine, "as it is, ms": round(middle["as it is"], 2)}
    for form in FORMS[1:]:
        row[f"{form}, times as fast"] = round(middle["as it is"] / middle[form], 2) if form in middle else "-"
    return [row]


if __name__ == "__main__":
    command("convolution forms", str(__doc__), ENGINES, rows_of, rounds=15)
