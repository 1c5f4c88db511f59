"""What the library costs before it does anything: importing it, and building a model without weights.

    python benchmarks/import_time.py --json benchmarks/results/start.json

Import: fresh processes, in which ``import torch`` and then ``import hardnet`` are timed; the least time of each counts.
Construction: ours and pytorchcv's in turns in one process, without weights; the least time of each counts. Whatever
else runs on a machine only ever adds time, so the least is the cleanest figure.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
IMPORTS = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import hardnet
print(middle - start, time.perf_counter() - middle)
"""
MODELS = ("hardnet39ds", "hardnet68ds", "hardnet68", "hardnet85")


def import_seconds(times: int) -> tuple[float, float]:
    """Return the seconds of ``import torch``, and those that ``import hardnet`` adds, each the best of so many."""
    pairs = []
    for _ in range(times):
        done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, check=True, capture_output=True, text=True)
        torch_seconds, ours = map(float, done.stdout.split())
        pairs.append((torch_seconds, ours))
    return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


def construction_seconds(model: str, times: int) -> tuple[float, float]:
    """Return the seconds that building a model takes, ours and pytorchcv's, each the best of so many, in turns."""
    from pytorchcv.model_provider import get_model

    import hardnet

    builders = (lambda: hardnet.create_model(model), lambda: get_model(model))
    best = [float("inf")] * 2
    for _ in range(times):
        for index, build in enumerate(builders):
            best[index] = min(best[index], _seconds(build))
    return best[0], best[1]


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    from benchmarks.results import surroundings_of, write_json
    from hardnet.utils.text import table

    surroundings = surroundings_of("cpu")
    rows: list[dict[str, Any]] = []
    seconds = import_seconds(arguments.times)
    rows.append({"what": "import torch, then hardnet", **_figures(*reversed(seconds), "import torch")})
    for model in MODELS:
        seconds = construction_seconds(model, arguments.times)
        rows.append({"what": f"build {model}", **_figures(*seconds, "pytorchcv")})
    print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    if arguments.json:
        protocol = {"best_of": arguments.times, "threads": torch.get_num_threads()}
        write_json(arguments.json, {"kind": "start", **surroundings, "protocol": protocol, "rows": rows})


def _figures(ours: float, other: float, beside: str) -> dict[str, Any]:
    return {
        "ms": round(1000 * ours, 1),
        "beside": beside,
        "its_ms": round(1000 * other, 1),
        "ratio": round(ours / other, 3),
    }


if __name__ == "__main__":
    main()
