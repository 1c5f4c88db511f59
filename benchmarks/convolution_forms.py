"""Other ways to compute two kinds of convolution, network by network, in the two engines that are torch's own.

    python benchmarks/convolution_forms.py --json benchmarks/results/convolution-forms.json

- 1x1 as products: a 1x1 convolution is a matrix product over the channels of every pixel, and given to torch as one.
- depthwise as sums: a depthwise 3x3 convolution is the sum of nine shifted and weighted images, of which inductor makes
  one loop, together with what stands around it.

Each form is checked to compute what the network computes. The forms take turns, and the median over the rounds counts.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from without_concatenation import MODELS, Run, milliseconds

import hardnet
from hardnet.benchmark.results import surroundings_of, write_json
from hardnet.deploy import fold
from hardnet.deploy.onednn_graph import compile_graph
from hardnet.report import table

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
    folded = fold(model).requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parent in list(folded.modules()):
        for name, conv in list(parent.named_children()):
            if not isinstance(conv, nn.Conv2d):
                continue
            if form == "1x1 as products" and conv.kernel_size == (1, 1):
                setattr(parent, name, Product(conv))
            if form == "depthwise as sums" and conv.groups > 1:
                setattr(parent, name, Shifted(conv))
    return cast(nn.Module, folded)


def row_of(name: str, engine: str, size: int, rounds: int) -> dict[str, Any]:
    """Measure one network in one engine."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = hardnet.create_model(name).eval()
    x = torch.rand(1, 3, size, size).contiguous(memory_format=torch.channels_last)
    wanted = model(x)
    runs: dict[str, Run] = {}
    for form in FORMS:
        module = in_form(model, form)
        if form != FORMS[0] and not any(isinstance(each, (Product, Shifted)) for each in module.modules()):
            continue
        compiled = torch.compile(module, dynamic=False, options={"cpp_wrapper": True})
        runs[form] = compile_graph(module, x) if engine == "torch" else cast(Run, compiled)
        difference = float((runs[form](x) - wanted).abs().max() / wanted.abs().max())
        if difference > 1e-4:
            raise RuntimeError(f"{name}, {form}, {engine}: differs by {difference:.1e} of the largest")
    middle = {form: statistics.median(values) for form, values in milliseconds(runs, x, rounds).items()}
    row: dict[str, Any] = {"model": name, "engine": engine, "as it is, ms": round(middle["as it is"], 2)}
    for form in FORMS[1:]:
        row[f"{form}, times as fast"] = round(middle["as it is"] / middle[form], 2) if form in middle else "-"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch._inductor.config.freezing = True
    surroundings = surroundings_of("cpu")
    rows = []
    with torch.no_grad():
        for name in arguments.models:
            rows += [row_of(name, engine, arguments.size, arguments.rounds) for engine in arguments.engines]
    print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    if arguments.json:
        protocol = {"batch": 1, "size": arguments.size, "rounds": arguments.rounds, "threads": arguments.threads}
        write_json(arguments.json, {"kind": "convolution forms", **surroundings, "protocol": protocol, "rows": rows})


if __name__ == "__main__":
    main()
