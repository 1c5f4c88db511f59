"""Results ─▶ tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.rows import BASELINE, OURS, Row
from hardnet.utils.text import table

HEADER = (
    "model",
    "engine",
    "precision",
    "batch",
    "size",
    "ms",
    "quartiles",
    "images/s",
    "x pytorchcv",
    "of floor",
    "memory, MB",
    "building, MB",
)
NONE = "-"
_ENGINE_NAMES = {"torch": "torch", "inductor": "inductor", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells under ``HEADER`` for one row of the results."""
    of, times = _row(row), row["milliseconds"]
    return (
        of.name,
        of.engine,
        of.precision,
        str(of.batch_size),
        of.size,
        milliseconds(times["median"]),
        f"{milliseconds(times['lower_quartile'])} to {milliseconds(times['upper_quartile'])}",
        f"{row['images_per_second']:.1f}",
        NONE if row["times_baseline"] is None else f"{row['times_baseline']:.2f}",
        NONE if row["share_of_floor"] is None else f"{row['share_of_floor']:.0%}",
        memory(row),
        f"{row['building_memory_mb']:,}",
    )


def milliseconds(value: float) -> str:
    """Three significant digits, as far as they stand behind the point."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def memory(row: dict[str, Any]) -> str:
    """The memory of a GPU where one was used, else of the process."""
    used = row["running_memory_mb"] if row["cuda_memory_mb"] is None else row["cuda_memory_mb"]
    return NONE if used is None else f"{used:,}"


def _row(row: dict[str, Any]) -> Row:
    return Row(**{name: row[name] for name in Row.__dataclass_fields__})


def for_terminal(results: dict[str, Any]) -> str:
    """Return every row, the floors, and what could not be measured."""
    rows = [cells(row) for row in results["rows"]]
    return "\n".join([table(HEADER, rows) if rows else "nothing was measured", "", *notes(results)])


def notes(results: dict[str, Any]) -> list[str]:
    """Return the sentences below a table."""
    lines = [_floor_note(floor) for floor in results["floors"]]
    lines += [f"left out: {entry['row']}: {entry['reason']}" for entry in results["left_out"]]
    lines += [f"failed: {entry['row']}: {entry['reason']}" for entry in results["failed"]]
    return lines


def _floor_note(floor: dict[str, Any]) -> str:
    how = {"mm": "torch.mm", "convolution": "a 1x1 convolution"}[floor["how"]]
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in floor["best_gflops"].items())
    size = Row("", "", "", "", floor["batch_size"], floor["height"], floor["width"]).size
    return (
        f"floor for batch {floor['batch_size']}, {size}: {floor['gflops']:.0f} GFLOP/s, float32 matrices of "
        f"{floor['side']} x {floor['side']} multiplied by {how} in the same rounds; tried before: {rates} GFLOP/s"
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, numbers to the right where the whole column starts with digits."""
    body = [list(row) for row in rows]
    right = [all(row[i][:1].isdigit() or row[i] == NONE for row in body) for i in range(len(header))]
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join("---:" if flush else "---" for flush in right) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body])


def full_table(results: dict[str, Any]) -> str:
    """Return every row as Markdown, with the notes below."""
    lines = "\n".join(f"- {note}" for note in notes(results))
    return markdown(HEADER, [cells(row) for row in results["rows"]]) + (f"\n\n{lines}" if lines else "")


def speed_table(results: dict[str, Any]) -> str:
    """Return one line per model, one column per engine, as Markdown: milliseconds, and how many times pytorchcv.

    For the first batch size and resolution of the results.
    """
    first = results["rows"][0]
    rows = [row for row in results["rows"] if _same_shape(row, first)]
    columns = list(dict.fromkeys((row["engine"], row["precision"]) for row in rows if row["source"] == OURS))
    found = {(row["source"], row["model"], row["engine"], row["precision"]): row for row in rows}
    header = ["ms, batch {batch_size}, {height} x {width}".format(**first), "pytorchcv, eager"]
    header += [engine_name(engine, precision) for engine, precision in columns]
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows if row["source"] == OURS):
        keys = [(BASELINE, model, "eager", "fp32"), *((OURS, model, *column) for column in columns)]
        lines.append([f"`{model}`", *(_cell(found.get(key)) for key in keys)])
    return markdown(header, lines)


def _same_shape(row: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(row[key] == other[key] for key in ("batch_size", "height", "width"))


def engine_name(engine: str, precision: str = "fp32") -> str:
    """Return the heading of a column."""
    name = _ENGINE_NAMES.get(engine, engine)
    return name if precision == "fp32" else f"{name} {precision}"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return NONE
    ratio = row["times_baseline"]
    faster = "" if ratio is None or row["source"] == BASELINE else f" ({ratio:.2f}x)"
    return milliseconds(row["milliseconds"]["median"]) + faster
