"""Images per second and peak memory of a training step, against peers in the same run.

    python benchmarks/training_step.py --json benchmarks/results/training-step.json

Speed: all candidates live in one process and take turns, one step each per round, so that drift of the machine meets
all of them alike; the median over the rounds counts. Memory: each candidate takes its steps in a process of its own,
whose peak resident size counts, less that of a process that only imports the packages. A step is forward, loss,
backward and SGD with momentum on random images.

Peers are pytorchcv's HarDNets and torchvision's ResNet-50 and MobileNetV2, in their usual configuration (contiguous
memory). Ours run as `hardnet train` runs them (channels_last), and once more with gradient checkpointing. All of them
get the huge pages that `hardnet train` asks for (THP_MEM_ALLOC_ENABLE=1).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.memory import peak_resident
from benchmarks.results import surroundings_of, write_json
from hardnet.utils.text import table

OURS = ("hardnet39ds", "hardnet68ds", "hardnet68", "hardnet85")
PEERS = ("torchvision/resnet50", "torchvision/mobilenet_v2")
CANDIDATES = [f"{source}/{name}" for name in OURS for source in ("hardnet", "checkpointed", "pytorchcv")] + [*PEERS]


def build(candidate: str) -> tuple[nn.Module, torch.memory_format]:
    source, name = candidate.split("/")
    torch.manual_seed(0)
    if source == "torchvision":
        import torchvision

        return torchvision.models.get_model(name, weights=None).train(), torch.contiguous_format
    if source == "pytorchcv":
        from pytorchcv.model_provider import get_model

        return get_model(name).train(), torch.contiguous_format
    import hardnet

    model = hardnet.create_model(name).train()
    model.set_grad_checkpointing(source == "checkpointed")
    return model.to(memory_format=torch.channels_last), torch.channels_last


def stepper(candidate: str, batch: int, size: int) -> Callable[[], None]:
    """Return a function that takes one training step."""
    model, memory_format = build(candidate)
    images = torch.rand(batch, 3, size, size).to(memory_format=memory_format)
    labels = torch.arange(batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def peak_megabytes(candidate: str, arguments: argparse.Namespace) -> float:
    """Run two steps in a process of its own and return its peak resident size."""
    command = [sys.executable, __file__, "--alone", candidate, "--batch", str(arguments.batch)]
    command += ["--size", str(arguments.size), "--threads", str(arguments.threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def alone(candidate: str, batch: int, size: int) -> None:
    import pytorchcv.model_provider  # noqa: F401  (everybody pays for the same imports)
    import torchvision  # noqa: F401

    if candidate != "nothing":
        step = stepper(candidate, batch, size)
        step()
        step()
    print(peak_resident())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, metavar="CANDIDATE", help="default: all")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--alone", metavar="CANDIDATE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
    if arguments.alone:
        alone(arguments.alone, arguments.batch, arguments.size)
        return

    candidates = arguments.candidates or CANDIDATES
    surroundings = surroundings_of("cpu")
    floor = peak_megabytes("nothing", arguments)
    memory = {candidate: peak_megabytes(candidate, arguments) - floor for candidate in candidates}
    steps = {candidate: stepper(candidate, arguments.batch, arguments.size) for candidate in candidates}
    seconds: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    for number in range(arguments.rounds + 1):
        for candidate, step in steps.items():
            start = time.perf_counter()
            step()
            if number:  # the first round warms up
                seconds[candidate].append(time.perf_counter() - start)

    rows: list[dict[str, Any]] = []
    for candidate in candidates:
        source, name = candidate.split("/")
        reference = seconds.get(f"pytorchcv/{name}")
        # Pair by pair within a round: what disturbs the machine for longer than a round cancels.
        ratio = reference and statistics.median(r / s for r, s in zip(reference, seconds[candidate], strict=True))
        rows.append(
            {
                "model": name,
                "implementation": source,
                "images_per_second": round(arguments.batch / statistics.median(seconds[candidate]), 2),
                "slowest": round(arguments.batch / max(seconds[candidate]), 2),
                "fastest": round(arguments.batch / min(seconds[candidate]), 2),
                "times_pytorchcv": ratio and round(ratio, 3),
                "peak_megabytes": round(memory[candidate]),
            }
        )
    protocol = {
        "batch": arguments.batch,
        "size": arguments.size,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
    }
    print(table(list(rows[0]), [["-" if value is None else value for value in row.values()] for row in rows]))
    if arguments.json:
        write_json(arguments.json, {"kind": "training step", **surroundings, "protocol": protocol, "rows": rows})


if __name__ == "__main__":
    main()
