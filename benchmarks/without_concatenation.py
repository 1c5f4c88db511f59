"""HarDBlocks without concatenations, block by block and engine by engine, against the blocks as they are.

    python benchmarks/without_concatenation.py --json benchmarks/results/without-concatenation.json

A convolution of a concatenation is a sum of convolutions: conv(cat(a, b)) = conv_a(a) + conv_b(b). So the inputs of a
layer need not be brought together. Two forms are tried:

- summed: a convolution for each link, each but the first adding to what the one before gave;
- merged: what the layers want of one input comes from one convolution with all their filters, and each layer adds up
  its parts (hardnet/deploy/merged.py, which the inductor engine uses).

The block's last concatenation, its output, stays. Each form is checked to compute what the block computes. The forms
take turns, and the median over the rounds counts.
"""

from __future__ import annotations

import argparse
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
from hardnet.deploy.merged import MergedBlock, parts_of
from hardnet.deploy.onednn_graph import compile_graph
from hardnet.layers import HarDBlock
from hardnet.report import table

MODELS = ("hardnet39ds", "hardnet68ds", "hardnet68", "hardnet85")
ENGINES = ("torch", "inductor", "openvino")
Run = Callable[[Tensor], Tensor]


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
    folded = fold(block).requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    modules: dict[str, nn.Module] = {"as it is": folded, "summed": Summed(folded), "merged": MergedBlock(folded)}
    return {name: _run(module.eval(), engine, example) for name, module in modules.items()}


def _run(module: nn.Module, engine: str, example: Tensor) -> Run:
    if engine == "torch":
        return cast(Run, compile_graph(module, example))
    if engine == "inductor":
        return cast(Run, torch.compile(module, dynamic=False, options={"cpp_wrapper": True}))
    if engine == "openvino":
        from hardnet.deploy.open_vino import core, runner, to_openvino

        module.in_chans = example.shape[1]
        converted = to_openvino(module, example)
        converted.reshape(list(example.shape))
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        return cast(Run, runner(core().compile_model(converted, "CPU", settings)))
    raise ValueError(f"there is no engine {engine!r}")


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
    torch._inductor.config.freezing = True
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
