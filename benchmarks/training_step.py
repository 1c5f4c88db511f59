"""Time a training step of our models, with and without gradient checkpointing, against pytorchcv and torchvision.

    python -m benchmarks.training_step --json benchmarks/results/training-step.json

A step is forward, backward and SGD on one fixed batch. The candidates take turns, and the median counts. Peak memory is
that of two steps in a process of its own, above a process that only imports. Our models run channels_last, as in
``hardnet train``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.candidates import network
from benchmarks.machine import peak_resident
from benchmarks.results import surroundings_of, write_json
from benchmarks.rows import OURS, Row
from hardnet.models.config import CONFIGS
from hardnet.models.network import HarDNet
from hardnet.utils.text import table

CANDIDATES = [f"{source}/{name}" for name in CONFIGS for source in ("hardnet", "checkpointed", "pytorchcv")]
CANDIDATES += ["torchvision/resnet50", "torchvision/mobilenet_v2"]


def stepper(candidate: str, batch: int, size: int) -> Callable[[], None]:
    """Return a function that runs one training step."""
    source, name = candidate.split("/")
    model = network(Row(OURS if source == "checkpointed" else source, name, "eager", "fp32", batch, size, size)).train()
    layout = torch.contiguous_format
    if isinstance(model, HarDNet):
        layout = torch.channels_last
        model.set_grad_checkpointing(source == "checkpointed")
    model = model.to(memory_format=layout)
    images = torch.rand(batch, 3, size, size).to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), torch.arange(batch)).backward()
        optimizer.step()

    return step


def peak_megabytes(candidate: str | None, batch: int, size: int, threads: int) -> float:
    """Return the peak resident memory of this process after two steps, or none; to be called in a new process."""
    torch.set_num_threads(threads)
    if candidate is not None:
        step = stepper(candidate, batch, size)
        step()
        step()
    return peak_resident()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("batch", 16), ("size", 224), ("rounds", 5), ("threads", torch.get_num_threads())):
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=CANDIDATES, metavar="CANDIDATE")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as in hardnet train
    surroundings = surroundings_of("cpu")
    memory: dict[str | None, float] = {}
    for each in (None, *arguments.candidates):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            memory[each] = pool.submit(
                peak_megabytes, each, arguments.batch, arguments.size, arguments.threads
            ).result()
    steps = {candidate: stepper(candidate, arguments.batch, arguments.size) for candidate in arguments.candidates}
    seconds: dict[str, list[float]] = {candidate: [] for candidate in steps}
    for number in range(arguments.rounds + 1):
        for candidate, step in steps.items():
            start = time.perf_counter()
            step()
            if number:  # the first round warms up
                seconds[candidate].append(time.perf_counter() - start)

    rows: list[dict[str, Any]] = []
    for candidate, times in seconds.items():
        source, name = candidate.split("/")
        reference = seconds.get(f"pytorchcv/{name}")
        # In pairs within a round: a disturbance that is longer than a round cancels.
        ratio = reference and statistics.median(r / s for r, s in zip(reference, times, strict=True))
        row: dict[str, Any] = {"model": name, "implementation": source}
        for figure, of in (("images_per_second", statistics.median), ("slowest", max), ("fastest", min)):
            row[figure] = round(arguments.batch / of(times), 2)
        rows.append(
            row
            | {"times_pytorchcv": ratio and round(ratio, 3), "peak_megabytes": round(memory[candidate] - memory[None])}
        )
    print(table(list(rows[0]), [["-" if value is None else value for value in row.values()] for row in rows]))
    if arguments.json:
        protocol = {name: getattr(arguments, name) for name in ("batch", "size", "rounds", "threads")}
        write_json(arguments.json, {"kind": "training step", **surroundings, "protocol": protocol, "rows": rows})


if __name__ == "__main__":
    main()
