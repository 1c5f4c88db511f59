"""What the scripts that compare forms of the same computation share: compiling, taking turns, the command line."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.results import surroundings_of, write_json
from hardnet.engines.native import compile_graph
from hardnet.utils.text import table

MODELS = ("hardnet39ds", "hardnet68ds", "hardnet68", "hardnet85")
Run = Callable[[Tensor], Tensor]


def compiled(module: nn.Module, engine: str, example: Tensor) -> Run:
    """Return a folded module as the engine of that name runs it."""
    if engine == "torch":
        return cast(Run, compile_graph(module, example))
    if engine == "inductor":
        return cast(Run, torch.compile(module, dynamic=False, options={"cpp_wrapper": True}))
    if engine == "openvino":
        from hardnet.engines.openvino import core, runner, to_openvino

        module.in_chans = example.shape[1]
        converted = to_openvino(module, example)
        converted.reshape(list(example.shape))
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        return cast(Run, runner(core().compile_model(converted, "CPU", settings)))
    raise ValueError(f"there is no engine {engine!r}")


def medians(runs: dict[str, Run], x: Tensor, wanted: Tensor, rounds: int) -> dict[str, float]:
    """Let the forms take turns of some passes each; return the milliseconds of a pass, the median over the rounds.

    Raises:
        RuntimeError: a form does not compute what is wanted.
    """
    for name, run in runs.items():
        difference = float((run(x) - wanted).abs().max() / wanted.abs().max())
        if difference > 1e-4:
            raise RuntimeError(f"{name}: differs by {difference:.1e} of the largest")
    start = time.perf_counter()
    next(iter(runs.values()))(x)
    passes = max(1, round(0.05 / (time.perf_counter() - start)))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs) if number % 2 else reversed(runs):
            runs[name](x)
            start = time.perf_counter()
            for _ in range(passes):
                runs[name](x)
            taken[name].append(1000 * (time.perf_counter() - start) / passes)
    return {name: statistics.median(times) for name, times in taken.items()}


def command(
    kind: str,
    about: str,
    engines: tuple[str, ...],
    rows_of: Callable[[str, str, int, int], list[dict[str, Any]]],
    rounds: int,
) -> None:
    """Measure the models and engines of the command line; ``rows_of`` gets model, engine, size and rounds."""
    parser = argparse.ArgumentParser(description=about.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--engines", nargs="+", choices=engines, default=engines)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=rounds)
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
                torch.manual_seed(0)
                torch._dynamo.reset()
                rows += rows_of(name, engine, arguments.size, arguments.rounds)
    print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    if arguments.json:
        protocol = {"batch": 1, "size": arguments.size, "rounds": arguments.rounds, "threads": arguments.threads}
        write_json(arguments.json, {"kind": kind, **surroundings, "protocol": protocol, "rows": rows})
