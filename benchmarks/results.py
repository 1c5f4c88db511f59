"""A benchmark's results as a JSON file: figures, every time that was taken, machine, versions and protocol."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, versions
from benchmarks.rounds import Outcome, Protocol
from benchmarks.rows import FLOOR
from benchmarks.summary import figures, floor_rate
from benchmarks.worker import WARM_UP


def as_results(groups: Sequence[Sequence[Outcome]], protocol: Protocol, surroundings: dict[str, Any]) -> dict[str, Any]:
    """Return what is written to the file.

    Args:
        groups: the outcomes, group by group.
        protocol: how they were measured.
        surroundings: see :func:`surroundings_of`, taken before the run.
    """
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
        "floors": [_floor(outcome) for group in groups for outcome in group if _is_floor(outcome)],
        "rows": [row for group in groups for row in figures(group)],
        "left_out": _reasons(groups, "left_out"),
        "failed": _reasons(groups, "failed"),
    }


def surroundings_of(device: str) -> dict[str, Any]:
    """Return the day, the machine and the versions."""
    return {"date": date.today().isoformat(), "machine": machine(device), "versions": versions()}


def _is_floor(outcome: Outcome) -> bool:
    return outcome.row.source == FLOOR and outcome.measured


def _floor(outcome: Outcome) -> dict[str, Any]:
    rate = floor_rate([outcome])
    return {
        "batch_size": outcome.row.batch_size,
        "height": outcome.row.height,
        "width": outcome.row.width,
        "gflops": None if rate is None else round(rate / 1e9, 1),
        "how": outcome.facts["how"],
        "side": outcome.facts["side"],
        "best_gflops": outcome.facts["best_gflops"],
        "rounds_ms": [[round(1000 * seconds, 3) for seconds in times] for times in outcome.rounds],
    }


def _reasons(groups: Sequence[Sequence[Outcome]], what: str) -> list[dict[str, str]]:
    outcomes = [outcome for group in groups for outcome in group]
    return [
        {"row": str(outcome.row), "reason": getattr(outcome, what)} for outcome in outcomes if getattr(outcome, what)
    ]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the whole file or, where that fails, leave what was there.

    Raises:
        ValueError: the file cannot be written.
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(_short_lists(text) + "\n")
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _short_lists(text: str) -> str:
    """Put lists of numbers on one line each: one number per line would make the file unreadable."""
    return re.sub(r"\[\n\s*([-+.\de,\s]+?)\s*\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
