"""HarDBlocks without concatenations, block by block and engine by engine, against the blocks as they are.

    python benchmarks/without_concatenation.py --json benchmarks/results/without-concatenation.json

A convolution of a concatenation is a sum of convolutions: conv(cat(a, b)) = conv_a(a) + conv_b(b). So the inputs of a
layer need not be brought together. Two forms are tried:

- summed: a convolution for each link, each but the first adding to what the one before gave;
- merged: what the layers want of one input comes from one convolution with all their filters, and each layer adds up
  its parts.

The block's last concatenation, its output, stays. Each form is checked to compute what the block computes. The forms
take turns, and the median over the rounds counts.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

import hardnet
from hardnet.benchmark.results import surroundings_of, write_json
from hardnet.deploy import fold
from hardnet.deploy.torch_engine import fuse
from hardnet.layers import CombConvLayer, ConvLayer, HarDBlock
from hardnet.report import table

MODELS = ("hardnet39ds", "hardnet68ds", "hardnet68", "hardnet85")
ENGINES = ("torch", "inductor", "openvino")
Run = Callable[[Tensor], Tensor]


class WithoutConcatenation(nn.Module):
    """What the two forms share: a folded block's convolutions, cut into a part for each link."""

    def __init__(self, block: HarDBlock, *, fused: bool = False) -> None:
        super().__init__()
        self.links, self.kept, self.fused = block.links, block.kept, fused
        self.after = nn.ModuleList()
        self.parts: list[list[Tensor]] = []
        self.biases: list[Tensor] = []
        for links, layer in zip(self.links, block.layers, strict=True):
            depthwise = isinstance(layer, CombConvLayer)
            conv = cast(ConvLayer, layer.layer1 if isinstance(layer, CombConvLayer) else layer).conv
            widths = [self._width(block, link, conv, links) for link in links]
            parts = conv.weight.detach().split(widths, 1)
            self.parts.append([part.contiguous(memory_format=torch.channels_last) for part in parts])
            self.biases.append(cast(Tensor, conv.bias).detach())
            rest = copy.deepcopy(layer.layer2) if depthwise else nn.Identity()
            self.after.append(fuse(rest) if fused and depthwise else rest)

    @staticmethod
    def _width(block: HarDBlock, link: int, conv: nn.Conv2d, links: list[int]) -> int:
        def out(n: int) -> int:
            layer = block.layers[n - 1]
            return cast(ConvLayer, layer.layer1 if isinstance(layer, CombConvLayer) else layer).conv.out_channels

        return out(link) if link else conv.in_channels - sum(out(other) for other in links if other)


class Summed(WithoutConcatenation):
    """A convolution for each link: (N, C, H, W) -> (N, out, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out, H, W)."""
        outputs = [x]
        for links, parts, bias, after in zip(self.links, self.parts, self.biases, self.after, strict=True):
            inputs = [outputs[link] for link in links]
            total = self._fused(inputs, parts, bias) if self.fused else self._plain(inputs, parts, bias)
            outputs.append(after(total))
        return torch.cat([outputs[n] for n in self.kept], 1)

    @staticmethod
    def _plain(inputs: list[Tensor], parts: list[Tensor], bias: Tensor) -> Tensor:
        total = functional.conv2d(inputs[0], parts[0], bias, padding=parts[0].shape[2] // 2)
        for one, part in zip(inputs[1:], parts[1:], strict=True):
            total = total + functional.conv2d(one, part, padding=part.shape[2] // 2)
        return functional.relu6(total)

    @staticmethod
    def _fused(inputs: list[Tensor], parts: list[Tensor], bias: Tensor) -> Tensor:
        padding, nothing = [parts[0].shape[2] // 2] * 2, ("none", [], "")
        activation = ("hardtanh", [0.0, 6.0], "") if len(inputs) == 1 else nothing
        total: Tensor = torch.ops.mkldnn._convolution_pointwise(
            inputs[0], parts[0], bias, padding, [1, 1], [1, 1], 1, *activation
        )
        for one, part in zip(inputs[1:], parts[1:], strict=True):
            settings = (None, padding, [1, 1], [1, 1], 1, "add", 1.0, None, [], None)
            total = torch.ops.mkldnn._convolution_pointwise_.binary(total, one, part, *settings)
        return functional.hardtanh_(total, 0.0, 6.0) if len(inputs) > 1 else total


class Merged(WithoutConcatenation):
    """A convolution for each input, for all the layers that read it: (N, C, H, W) -> (N, out, H, W)."""

    def __init__(self, block: HarDBlock, *, fused: bool = False) -> None:
        super().__init__(block, fused=fused)
        self.readers = [
            [n for n, links in enumerate(self.links) if source in links] for source in range(len(self.links))
        ]
        self.weights: list[Tensor] = []
        self.shifts: list[Tensor] = []
        for source, readers in enumerate(self.readers):
            parts = [self.parts[n][self.links[n].index(source)] for n in readers]
            self.weights.append(torch.cat(parts).contiguous(memory_format=torch.channels_last))
            # A layer's bias goes with what it gets first, which is from the earliest layer.
            shifts = [self.biases[n] * (source == min(self.links[n])) for n in readers]
            self.shifts.append(torch.cat(shifts))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out, H, W)."""
        outputs = [x]
        totals: list[Tensor | None] = [None] * len(self.links)
        for source, (readers, weight, bias) in enumerate(zip(self.readers, self.weights, self.shifts, strict=True)):
            padding = weight.shape[2] // 2
            if self.fused:
                settings = (bias, [padding] * 2, [1, 1], [1, 1], 1, "none", [], "")
                found = torch.ops.mkldnn._convolution_pointwise(outputs[source], weight, *settings)
            else:
                found = functional.conv2d(outputs[source], weight, bias, padding=padding)
            for n, part in zip(readers, found.split([len(self.biases[n]) for n in readers], 1), strict=True):
                before = totals[n]
                totals[n] = part if before is None else before + part
            complete = cast(Tensor, totals[source])  # the last input of a layer is the layer before
            outputs.append(self.after[source](functional.relu6(complete)))
        return torch.cat([outputs[n] for n in self.kept], 1)


def forms(block: HarDBlock, engine: str, example: Tensor) -> dict[str, Run]:
    """Return the block and its two other forms, as the engine runs them."""
    folded = fold(block)
    fused = engine == "torch"
    modules: dict[str, nn.Module] = {
        "as it is": fuse(fold(block)) if fused else folded,
        "summed": Summed(folded, fused=fused),
        "merged": Merged(folded, fused=fused),
    }
    return {name: _run(module.eval(), engine, example) for name, module in modules.items()}


def _run(module: nn.Module, engine: str, example: Tensor) -> Run:
    if engine == "inductor":
        return cast(Run, torch.compile(module, options={"cpp_wrapper": True}))
    if engine == "openvino":
        from hardnet.deploy.open_vino import core, runner, to_openvino

        module.in_chans = example.shape[1]
        converted = to_openvino(module, example)
        converted.reshape(list(example.shape))
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        return cast(Run, runner(core().compile_model(converted, "CPU", settings)))
    return module


def inputs_of_blocks(model: hardnet.HarDNet, size: int) -> dict[str, Tensor]:
    """Return what each block gets where the model gets an image of this size."""
    x, found = torch.rand(1, 3, size, size), {}
    for index, layer in enumerate(model.base[:-1]):
        if isinstance(layer, HarDBlock):
            found[f"base.{index}"] = x.contiguous(memory_format=torch.channels_last)
        x = layer(x)
    return found


def milliseconds(runs: dict[str, Run], x: Tensor, rounds: int) -> dict[str, list[float]]:
    """Let the forms take turns of some passes each; return what a pass takes, round by round."""
    start = time.perf_counter()
    runs["as it is"](x)
    passes = max(1, round(0.05 / (time.perf_counter() - start)))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs) if number % 2 else reversed(runs):
            runs[name](x)
            start = time.perf_counter()
            for _ in range(passes):
                runs[name](x)
            taken[name].append(1000 * (time.perf_counter() - start) / passes)
    return taken


def rows_of(name: str, engine: str, size: int, rounds: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = hardnet.create_model(name).eval()
    rows: list[dict[str, Any]] = []
    sums = {"as it is": 0.0, "summed": 0.0, "merged": 0.0}
    best = 0.0
    for place, x in inputs_of_blocks(model, size).items():
        block = cast(HarDBlock, model.get_submodule(place))
        runs = forms(block, engine, x)
        wanted = block(x)
        for form, run in runs.items():
            difference = float((run(x) - wanted).abs().max() / wanted.abs().max())
            if difference > 1e-4:
                raise RuntimeError(f"{name} {place}, {form}, {engine}: differs by {difference:.1e} of the largest")
        taken = milliseconds(runs, x, rounds)
        middle = {form: statistics.median(values) for form, values in taken.items()}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    surroundings = surroundings_of("cpu")
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for name in arguments.models:
            for engine in arguments.engines:
                rows += rows_of(name, engine, arguments.size, arguments.rounds)
    print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    if arguments.json:
        protocol = {"batch": 1, "size": arguments.size, "rounds": arguments.rounds, "threads": arguments.threads}
        write_json(
            arguments.json, {"kind": "without concatenation", **surroundings, "protocol": protocol, "rows": rows}
        )


if __name__ == "__main__":
    main()
