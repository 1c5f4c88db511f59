"""Compute the figures of a benchmark, and write them with every single time, machine, versions and protocol as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, versions
from benchmarks.rounds import Outcome, Protocol
from benchmarks.rows import BASELINE, FLOOR
from benchmarks.worker import WARM_UP
from hardnet.cli.benchmark import quartiles
from hardnet.utils.files import write_atomically


def as_results(groups: Sequence[Sequence[Outcome]], protocol: Protocol, surroundings: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the file.

    Args:
        groups: the outcomes, group by group.
        protocol: how they were measured.
        surroundings: see :func:`surroundings_of`, taken before the run.
    """
    outcomes = list(chain.from_iterable(groups))
    return {
        "kind": "speed",
        **surroundings,
        "protocol": {
            "rounds": protocol.rounds,
            "turn_seconds": protocol.turn_seconds,
            "pause_seconds": protocol.pause_seconds,
            "warm_up_passes": WARM_UP,
            "threads": protocol.threads,
            "device": protocol.device,
            "order": "round robin, every second round backwards; one process per row",
        },
        "floors": [_floor(outcome) for outcome in outcomes if outcome.row.source == FLOOR and outcome.measured],
        "rows": [row for group in groups for row in figures(group)],
        "left_out": [{"row": str(o.row), "reason": o.left_out} for o in outcomes if o.left_out],
        "failed": [{"row": str(o.row), "reason": o.failed} for o in outcomes if o.failed],
    }


def surroundings_of(device: str) -> dict[str, Any]:
    """Return the date, the machine and the versions."""
    return {"date": date.today().isoformat(), "machine": machine(device), "versions": versions()}


def figures(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the figures of the measured rows of a group, except the matrix multiplication.

    ``times_baseline`` is the ratio of medians to pytorchcv's model of the same name in eager mode: above 1 is faster.
    ``share_of_floor`` is the time that the multiply-accumulates take at the rate of the matrix multiplication, over
    the time of the row.
    """
    medians = {outcome.row: _spread(outcome)[1] for outcome in outcomes if outcome.measured}
    baselines = {
        row.model: median for row, median in medians.items() if (row.source, row.engine) == (BASELINE, "eager")
    }
    rate = next((_rate(outcome) for outcome in outcomes if outcome.row.source == FLOOR and outcome.measured), None)
    measured = [outcome for outcome in outcomes if outcome.measured and outcome.row.source != FLOOR]
    return [_figures(outcome, baselines.get(outcome.row.model), rate) for outcome in measured]


def _figures(outcome: Outcome, baseline: float | None, rate: float | None) -> dict[str, Any]:
    row, facts = outcome.row, outcome.facts
    lower, median, upper = _spread(outcome)
    spread = {"median": median, "lower_quartile": lower, "upper_quartile": upper}
    copied = ("macs", "reported_top1_error", "running_memory_mb", "building_memory_mb", "cuda_memory_mb")
    return {
        **vars(row),
        "milliseconds": {name: round(1000 * seconds, 3) for name, seconds in spread.items()},
        "images_per_second": round(row.batch_size / median, 2),
        "times_baseline": None if baseline is None else round(baseline / median, 3),
        "share_of_floor": None if rate is None else round(2 * facts["macs"] * row.batch_size / rate / median, 4),
        **{name: facts[name] for name in (*copied, "build_seconds", "idle_cores")},
        "rounds_ms": _milliseconds(outcome),
    }


def _floor(outcome: Outcome) -> dict[str, Any]:
    row = outcome.row
    return {
        "batch_size": row.batch_size,
        "height": row.height,
        "width": row.width,
        "gflops": round(_rate(outcome) / 1e9, 1),
        **{name: outcome.facts[name] for name in ("how", "side", "best_gflops")},
        "rounds_ms": _milliseconds(outcome),
    }


def _rate(outcome: Outcome) -> float:
    return float(outcome.facts["operations"]) / _spread(outcome)[1]


def _spread(outcome: Outcome) -> tuple[float, float, float]:
    return quartiles(list(chain.from_iterable(outcome.rounds)))


def _milliseconds(outcome: Outcome) -> list[list[float]]:
    return [[round(1000 * seconds, 3) for seconds in times] for times in outcome.rounds]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the whole file, with lists of numbers on one line each, or leave what was there.

    Raises:
        ValueError: the file cannot be written.
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    text = re.sub(r"\[\n\s*([-+.\de,\s]+?)\s*\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as file:
            file.write(text.encode() + b"\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None
