"""Compute the figures of a benchmark, and write them with machine, versions and protocol as JSON."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.candidates import cost
from benchmarks.machine import machine, versions
from benchmarks.rounds import Outcome, Protocol
from benchmarks.rows import BASELINE, Row
from benchmarks.worker import WARM_UP
from hardnet.engines.timing import quartiles
from hardnet.utils.files import write_atomically


def as_results(
    groups: Sequence[Sequence[Outcome]],
    protocol: Protocol,
    surroundings: dict[str, Any],
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of the file.

    Args:
        groups: the outcomes, group by group.
        protocol: how they were measured.
        surroundings: see :func:`surroundings_of`, taken before the run.
        before: results to add to; rows that were measured again are replaced.

    Raises:
        ValueError: these results are from another processor or other versions.
    """
    before = before or {"networks": {}, "rows": [], "left_out": [], "failed": [], **surroundings}
    if before["versions"] != surroundings["versions"] or _name(before) != _name(surroundings):
        raise ValueError("the file has results of another processor or of other versions: write to a new file")
    outcomes = list(chain.from_iterable(groups))
    measured_now = {str(outcome.row) for outcome in outcomes}
    rows = [row for group in groups for row in figures(group)]
    rows = [row for row in before["rows"] if str(row_of(row)) not in measured_now] + _unique(rows)
    networks = before["networks"] | {
        row["model"]: cost(row_of(row)) for row in rows if row["model"] not in before["networks"]
    }
    kept = {key: [entry for entry in before[key] if entry["row"] not in measured_now] for key in ("left_out", "failed")}
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
        "networks": networks,
        "rows": rows,
        "left_out": kept["left_out"] + [{"row": str(o.row), "reason": o.left_out} for o in outcomes if o.left_out],
        "failed": kept["failed"] + [{"row": str(o.row), "reason": o.failed} for o in outcomes if o.failed],
    }


def _unique(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the first of equal rows: every group measures pytorchcv's models again."""
    return list({str(row_of(row)): row for row in reversed(rows)}.values())[::-1]


def row_of(figures: dict[str, Any]) -> Row:
    """Return the row that figures belong to."""
    return Row(**{name: figures[name] for name in Row.__dataclass_fields__})


def _name(results: dict[str, Any]) -> tuple[Any, Any]:
    return results["machine"]["processor"], results["machine"].get("gpu")


def surroundings_of(device: str) -> dict[str, Any]:
    """Return the date, the machine and the versions."""
    return {"date": date.today().isoformat(), "machine": machine(device), "versions": versions()}


def figures(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the figures of the measured rows of a group.

    ``times_baseline`` is the ratio of medians to pytorchcv's model of the same name in eager mode: above 1 is faster.
    """
    measured = [outcome for outcome in outcomes if outcome.measured]
    medians = {outcome.row: _spread(outcome)[1] for outcome in measured}
    baselines = {(row.model, row.shape): median for row, median in medians.items() if row.source == BASELINE}
    return [_figures(each, baselines.get((each.row.model, each.row.shape))) for each in measured]


def _figures(outcome: Outcome, baseline: float | None) -> dict[str, Any]:
    lower, median, upper = _spread(outcome)
    spread = {"median": median, "lower_quartile": lower, "upper_quartile": upper}
    return {
        **vars(outcome.row),
        "milliseconds": {name: round(1000 * seconds, 3) for name, seconds in spread.items()},
        "images_per_second": round(outcome.row.batch_size / median, 2),
        "times_baseline": None if baseline is None else round(baseline / median, 3),
        **outcome.facts,
        "rounds_ms": [round(1000 * statistics.median(times), 3) for times in outcome.rounds],
    }


def _spread(outcome: Outcome) -> tuple[float, float, float]:
    return quartiles(list(chain.from_iterable(outcome.rounds)))


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
