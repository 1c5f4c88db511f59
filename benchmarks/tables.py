"""Make tables from results, for the terminal and for Markdown; write them into the documents.

A table of a document stands between two comments, the first of which names it; files are those of benchmarks/results:

    <!-- generated: speed cpu-224.json -->      one line per model, one column per engine
    <!-- generated: full cpu-224.json -->       every row
    <!-- end of generated -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import end_to_end
from benchmarks.rows import BASELINE, OURS, Row
from hardnet.utils.text import table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- generated: ([^>]*?) -->\n)(.*?)(<!-- end of generated -->)", re.DOTALL)
COLUMNS = ("model", "engine", "precision", "batch", "size", "ms", "quartiles", "images/s")
HEADER = (*COLUMNS, "x pytorchcv", "of floor", "memory, MB", "building, MB")
NONE = "-"


def cells(row: dict[str, Any]) -> list[str]:
    """Return the cells under ``HEADER`` for one row of the results."""
    of, times = Row(**{name: row[name] for name in Row.__dataclass_fields__}), row["milliseconds"]
    memory = row["running_memory_mb"] if row["cuda_memory_mb"] is None else row["cuda_memory_mb"]
    return [
        *(of.name, of.engine, of.precision, str(of.batch_size), of.size),
        milliseconds(times["median"]),
        f"{milliseconds(times['lower_quartile'])} to {milliseconds(times['upper_quartile'])}",
        f"{row['images_per_second']:.1f}",
        NONE if row["times_baseline"] is None else f"{row['times_baseline']:.2f}",
        NONE if row["share_of_floor"] is None else f"{row['share_of_floor']:.0%}",
        NONE if memory is None else f"{memory:,}",
        f"{row['building_memory_mb']:,}",
    ]


def milliseconds(value: float) -> str:
    """Return three significant digits, without decimals from 100 on."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def for_terminal(results: dict[str, Any]) -> str:
    """Return every row of a benchmark or an end-to-end run, and the notes."""
    header, cells_of = (end_to_end.HEADER, end_to_end.cells) if results["kind"] == "end to end" else (HEADER, cells)
    rows = [cells_of(row) for row in results["rows"]]
    return "\n".join([table(header, rows) if rows else "nothing was measured", "", *notes(results)])


def notes(results: dict[str, Any]) -> list[str]:
    """Return the sentences below a table: the roofline, and the rows without figures."""
    lines = []
    for floor in results.get("floors", ()):
        how = {"mm": "torch.mm", "convolution": "a 1x1 convolution"}[floor["how"]]
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in floor["best_gflops"].items())
        size = Row("", "", "", "", floor["batch_size"], floor["height"], floor["width"]).size
        lines.append(
            f"floor for batch {floor['batch_size']}, {size}: {floor['gflops']:.0f} GFLOP/s, float32 matrices of "
            f"{floor['side']} x {floor['side']} multiplied by {how} in the same rounds; tried before: {rates} GFLOP/s"
        )
    lines += [f"left out: {entry['row']}: {entry['reason']}" for entry in results["left_out"]]
    return lines + [f"failed: {entry['row']}: {entry['reason']}" for entry in results.get("failed", ())]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; columns in which every cell starts with a digit are aligned to the right."""
    body = [list(row) for row in rows]
    right = [all(row[i][:1].isdigit() or row[i] == NONE for row in body) for i in range(len(header))]
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join("---:" if flush else "---" for flush in right) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body])


def speed_table(results: dict[str, Any]) -> str:
    """Return one line per model, one column per engine, for the first batch size and resolution of the results."""
    first = results["rows"][0]
    shape = ("batch_size", "height", "width")
    rows = [row for row in results["rows"] if all(row[key] == first[key] for key in shape)]
    columns = list(dict.fromkeys((row["engine"], row["precision"]) for row in rows if row["source"] == OURS))
    found = {(row["source"], row["model"], row["engine"], row["precision"]): row for row in rows}
    header = ["ms, batch {batch_size}, {height} x {width}".format(**first), "pytorchcv, eager"]
    header += [engine_name(engine, precision) for engine, precision in columns]
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows if row["source"] == OURS):
        keys = [(BASELINE, model, "eager", "fp32"), *((OURS, model, *column) for column in columns)]
        lines.append([f"`{model}`", *(_cell(found.get(key)) for key in keys)])
    return markdown(header, lines)


def engine_name(engine: str, precision: str = "fp32") -> str:
    """Return the heading of a column."""
    name = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}.get(engine, engine)
    return name if precision == "fp32" else f"{name} {precision}"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return NONE
    ratio = row["times_baseline"]
    faster = "" if ratio is None or row["source"] == BASELINE else f" ({ratio:.2f}x)"
    return milliseconds(row["milliseconds"]["median"]) + faster


def full_table(results: dict[str, Any]) -> str:
    """Return machine, protocol and versions, every row, and the notes, as Markdown."""
    facts = results["machine"]
    where = [facts["processor"], facts["architecture"], f"{facts['cores']} cores", facts["instructions"]]
    where += [facts[key] for key in ("gpu",) if key in facts]
    protocol = ", ".join(f"{key.replace('_', ' ')} {_text(value)}" for key, value in results["protocol"].items())
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    load = f"Load average before the run: {facts['load_before']}."
    surroundings = f"{results['date']}. {', '.join(where)}. {load} Protocol: {protocol}. Versions: {versions}."
    rows = results["rows"]
    if results["kind"] == "speed":
        body = markdown(HEADER, [cells(row) for row in rows])
    elif results["kind"] == "end to end":
        body = markdown(end_to_end.HEADER, [end_to_end.cells(row) for row in rows])
    else:  # rows of numbers and names
        header = [key.replace("_", " ") for key in rows[0]]
        body = markdown(header, [[NONE if value is None else str(value) for value in row.values()] for row in rows])
    lines = "\n".join(f"- {note}" for note in notes(results)) if results["kind"] == "speed" else ""
    return "\n\n".join(filter(None, (surroundings, body, lines)))


def _text(value: object) -> str:
    return "default" if value is None else f"({value})" if isinstance(value, str) and "," in value else str(value)


def render(what: str, results: Path) -> str:
    """Return the table that a comment names.

    Raises:
        ValueError: the comment is not understood, or the file is missing.
    """
    style, _, name = what.partition(" ")
    styles: dict[str, Callable[[dict[str, Any]], str]] = {"speed": speed_table, "full": full_table}
    if style not in styles:
        raise ValueError(f"unknown table {what!r}; known: {', '.join(f'{style} FILE' for style in styles)}")
    return styles[style](_read(results / name))


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.name} is not in {path.parent.name}") from None
    return content


def stale(documents: Iterable[Path], results: Path) -> dict[Path, str]:
    """Return the documents whose tables differ from the results, with their new content."""
    texts = {path: path.read_text(encoding="utf-8") for path in documents}
    new = {
        path: BLOCK.sub(lambda found: f"{found[1]}\n{render(found[2], results)}\n\n{found[4]}", text)
        for path, text in texts.items()
    }
    return {path: text for path, text in new.items() if text != texts[path]}
