"""Compare every engine and precision with eager mode on many input shapes, in child processes that may crash.

A child walks the shapes of one model, engine and precision, and announces each before it runs it. If it dies, the next
child goes on with the shape after.
"""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.candidates import accelerated, network
from benchmarks.photographs import calibration_images
from benchmarks.rows import OURS, Row
from hardnet.cli.benchmark import settle

SHAPES = [(batch, side) for batch in range(1, 9) for side in range(32, 257, 32)]
"""Images per batch, height and width."""
TOLERANCES = {"fp32": 1e-4, "bf16": 1.25, "int8": 0.5}
"""Norm of the difference from eager mode's logits over their norm; in bf16 over that of eager mode's own difference."""
CHILD = (sys.executable, "-m", "benchmarks.sweep")


def compare(model: str, engine: str, precision: str, start: int, photographs: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the index of each shape from ``start`` on, then its deviation (:data:`TOLERANCES`) or why it was refused.

    Raises:
        ImportError, NotImplementedError: see :func:`benchmarks.candidates.build`.
    """
    eager = network(Row(OURS, model, "eager", "fp32", 1, 224, 224))
    settle(eager, 224, 224)
    eager.eval()
    half = copy.deepcopy(eager).to(torch.bfloat16) if precision == "bf16" else None
    parts, fast = torch.cat(calibration_images(photographs)), None
    for index in range(start, len(SHAPES)):
        yield {"index": index}
        batch, side = SHAPES[index]
        images = functional.interpolate(parts[:batch], (side, side), mode="bilinear", antialias=True)
        row = Row(OURS, model, engine, precision, batch, side, side)
        try:
            if fast is None or engine == "torch":  # its graphs are compiled for one shape
                fast = accelerated(eager, row, images, None, photographs)
            with torch.inference_mode():
                wanted = eager(images)
                scale = wanted if half is None else half(images.to(torch.bfloat16)) - wanted
                deviation = float((fast(images) - wanted).norm() / scale.norm())
        except NotImplementedError:
            raise
        except (RuntimeError, ValueError) as error:
            yield {"refused": f"{batch} x {side}: {error}"}
        else:
            yield {"deviation": deviation}


def sweep_one(
    model: str, engine: str, precision: str, photographs: Path | None = None, child: Sequence[str] = CHILD
) -> dict[str, Any]:
    """Return the number of shapes, those that crashed or were refused, and the deviations, ready for JSON.

    Raises:
        RuntimeError: a child failed before it announced a shape.
    """
    row: dict[str, Any] = {"model": model, "engine": engine, "precision": precision, "shapes": len(SHAPES)}
    crashes, refused, deviations = [], [], []
    start = 0
    while start < len(SHAPES):
        job = json.dumps([model, engine, precision, start, None if photographs is None else str(photographs)])
        process = subprocess.Popen([*child, job], stdout=subprocess.PIPE, text=True)
        index = None
        for line in process.stdout or ():
            answer = json.loads(line)
            index = answer.get("index", index)
            if "left_out" in answer:
                return row | {"left_out": answer["left_out"]}
            refused += [answer["refused"]] if "refused" in answer else []
            deviations += [answer["deviation"]] if "deviation" in answer else []
        if process.wait() == 0:
            break
        if index is None:
            raise RuntimeError(f"{model} {engine} {precision}: a child ended with status {process.returncode}")
        batch, side = SHAPES[index]
        crashes.append(f"{batch} x {side}: status {process.returncode}")
        start = index + 1
    return row | {
        "crashes": crashes,
        "refused": refused,
        "tolerance": TOLERANCES[precision],
        "outside_tolerance": sum(not deviation <= TOLERANCES[precision] for deviation in deviations),  # NaN counts
        "largest_deviation": float(f"{max(filter(math.isfinite, deviations), default=0.0):.3g}"),
    }


def main() -> None:
    """Compare in this process, and print answers as lines of JSON."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    *job, photographs = json.loads(sys.argv[1])
    try:
        for answer in compare(*job, photographs and Path(photographs)):
            print(json.dumps(answer), file=answers, flush=True)
    except (ImportError, NotImplementedError) as error:
        print(json.dumps({"left_out": str(error)}), file=answers, flush=True)


if __name__ == "__main__":
    main()
