"""What the command line prints: predictions, costs and weights as tables, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .classify import ImageResult
from .complexity import Cost, StageCost
from .images import printable


def predictions(results: Iterable[ImageResult], style: str) -> Iterator[str]:
    """Yield the output for each result as it comes; ``style`` is "table", "json" or "csv"."""
    return {"table": _as_table, "json": _as_json, "csv": _as_csv}[style](results)


def _as_table(results: Iterable[ImageResult]) -> Iterator[str]:
    """A paragraph per picture. Unusable ones are left to the log, which names them on standard error."""
    for result in results:
        if result.error is None:
            rows = [f"  {p.probability:7.2%}  {printable(p.label)}" for p in result.predictions]
            yield "\n".join([printable(result.source), *rows, ""])


def _as_json(results: Iterable[ImageResult]) -> Iterator[str]:
    """One array, an entry per line, so that it can be read while it grows."""
    before = "["
    for result in results:
        entry: dict[str, Any] = {"source": result.source}
        if result.error is None:
            entry["predictions"] = [
                {"label": p.label, "index": p.index, "probability": p.probability} for p in result.predictions
            ]
        else:
            entry["error"] = result.error
        yield before + json.dumps(entry)
        before = ","
    yield "]" if before == "," else "[]"


def _as_csv(results: Iterable[ImageResult]) -> Iterator[str]:
    yield _csv_row("source", "rank", "index", "label", "probability", "error")
    for result in results:
        if result.error is not None:
            yield _csv_row(result.source, "", "", "", "", result.error)
        for rank, p in enumerate(result.predictions, 1):
            yield _csv_row(result.source, rank, p.index, p.label, f"{p.probability:.6f}", "")


def _csv_row(*cells: object) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)  # what breaks lines is quoted if it is in this writer's own, "\r\n"
    return buffer.getvalue().removesuffix("\r\n")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Align columns: the first to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]
    left = [not any(row[i][:1].isdigit() for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        aligned = (c.ljust(w) if flush else c.rjust(w) for c, w, flush in zip(row, widths, left, strict=True))
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), *(line(row) for row in cells)])


def cost(measured: Cost) -> str:
    """The cost of one model, stage by stage."""
    header = ("stage", "base", "output", "layers", "parameters", "MACs", "CIO", "MACs/CIO")
    rows = [_cost_row(stage, _indices(stage)) for stage in measured.stages]
    shape = " x ".join(map(str, measured.input_shape))
    title = f"{measured.model} for one image of {shape}"
    return f"{title}\n{table(header, [*rows, _cost_row(measured.total, '')])}"


def _indices(stage: StageCost) -> str:
    first, stop = stage.indices
    return f"[{first}]" if stop == first + 1 else f"[{first}:{stop}]"


def _cost_row(stage: StageCost, indices: str) -> tuple[str, ...]:
    return (
        stage.name,
        indices,
        " x ".join(map(str, stage.output_shape)),
        str(stage.layers),
        f"{stage.params:,}",
        f"{stage.macs:,}",
        f"{stage.cio:,}",
        f"{stage.macs_per_cio:.1f}" if stage.cio else "-",
    )


def costs(measured: Iterable[Cost]) -> str:
    """The totals of several models."""
    header = ("model", "layers", "parameters", "MACs", "CIO", "MACs/CIO")
    rows = []
    for one in measured:
        total = one.total
        numbers = (f"{total.params:,}", f"{total.macs:,}", f"{total.cio:,}", f"{total.macs_per_cio:.1f}")
        rows.append((one.model, str(total.layers), *numbers))
    return table(header, rows)
