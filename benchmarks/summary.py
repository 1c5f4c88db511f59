"""Times ─▶ figures: median, quartiles, rates, ratios and shares."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from benchmarks.rounds import Outcome
from benchmarks.rows import BASELINE, FLOOR


@dataclass(frozen=True)
class Spread:
    """The middle of a sample, and where its middle half lies."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> Spread:
        """Return the median and the quartiles (linear interpolation) of at least one number."""
        if len(sample) == 1:
            return cls(sample[0], sample[0], sample[0])
        lower, median, upper = statistics.quantiles(sample, n=4, method="inclusive")
        return cls(median, lower, upper)


def spread(outcome: Outcome) -> Spread:
    """Return the spread of a row's times in seconds, over all rounds."""
    return Spread.of(list(chain.from_iterable(outcome.rounds)))


def floor_rate(outcomes: Sequence[Outcome]) -> float | None:
    """Return the group's measured rate of the float32 matrix product in operations per second, None without one."""
    for outcome in outcomes:
        if outcome.row.source == FLOOR and outcome.measured:
            return float(outcome.facts["operations"]) / spread(outcome).median
    return None


def figures(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the figures of a group's measured rows, ready for JSON; the floor is not among them.

    ``times_baseline`` is the ratio of medians to pytorchcv's model of the same name in eager mode: above 1 is faster.
    ``share_of_floor`` is the time that the row's multiply-accumulates would take at the rate of the matrix product,
    over the time that the row takes.
    """
    medians = {outcome.row: spread(outcome).median for outcome in outcomes if outcome.measured}
    baselines = {
        row.model: median for row, median in medians.items() if row.source == BASELINE and row.engine == "eager"
    }
    rate = floor_rate(outcomes)
    return [
        _figures(outcome, baselines.get(outcome.row.model), rate)
        for outcome in outcomes
        if outcome.measured and outcome.row.source != FLOOR
    ]


def _figures(outcome: Outcome, baseline: float | None, rate: float | None) -> dict[str, Any]:
    row, facts, times = outcome.row, outcome.facts, spread(outcome)
    operations = 2 * facts["macs"] * row.batch_size
    return {
        "source": row.source,
        "model": row.model,
        "engine": row.engine,
        "precision": row.precision,
        "batch_size": row.batch_size,
        "height": row.height,
        "width": row.width,
        "milliseconds": {
            "median": round(1000 * times.median, 3),
            "lower_quartile": round(1000 * times.lower, 3),
            "upper_quartile": round(1000 * times.upper, 3),
        },
        "images_per_second": round(row.batch_size / times.median, 2),
        "times_baseline": None if baseline is None else round(baseline / times.median, 3),
        "share_of_floor": None if rate is None else round(operations / rate / times.median, 4),
        "macs": facts["macs"],
        "reported_top1_error": facts["reported_top1_error"],
        "running_memory_mb": facts["running_memory_mb"],
        "building_memory_mb": facts["building_memory_mb"],
        "cuda_memory_mb": facts["cuda_memory_mb"],
        "build_seconds": facts["build_seconds"],
        "idle_cores": facts["idle_cores"],
        "rounds_ms": [[round(1000 * seconds, 3) for seconds in times] for times in outcome.rounds],
    }
