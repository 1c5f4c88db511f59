"""Make tables from results, for the terminal and for Markdown; write them into the documents.

A table of a document stands between two comments, the first of which names it; files are those of benchmarks/results:

    <!-- generated: speed cpu.json 1 224 torch openvino-int8 -->  for a batch size, a resolution and these engines
    <!-- generated: speed cpu.json 16 224 -->                     for all engines
    <!-- generated: models cpu.json -->                           reported errors, costs, and times of OpenVINO
    <!-- generated: sweep sweep.json -->                          input shapes that were compared with eager
    <!-- generated: full end-to-end.json -->                      every row
    <!-- end of generated -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import end_to_end
from benchmarks.results import row_of
from benchmarks.rows import BASELINE, OURS
from hardnet.utils.text import table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- generated: ([^>]*?) -->\n)(.*?)(<!-- end of generated -->)", re.DOTALL)
COLUMNS = ("model", "engine", "precision", "batch", "size", "ms", "quartiles", "images/s")
HEADER = (*COLUMNS, "x pytorchcv", "memory, MB", "building, MB")
NONE = "-"


def cells(row: dict[str, Any]) -> list[str]:
    """Return the cells under ``HEADER`` for one row of the results."""
    of, times = row_of(row), row["milliseconds"]
    memory = row["running_memory_mb"] if row["cuda_memory_mb"] is None else row["cuda_memory_mb"]
    return [
        *(of.name, of.engine, of.precision, str(of.batch_size), of.size),
        milliseconds(times["median"]),
        f"{milliseconds(times['lower_quartile'])} to {milliseconds(times['upper_quartile'])}",
        f"{row['images_per_second']:.1f}",
        NONE if row["times_baseline"] is None else f"{row['times_baseline']:.2f}",
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
    """Return the sentences below a table: the rows without figures."""
    lines = [f"left out: {entry['row']}: {entry['reason']}" for entry in results["left_out"]]
    return lines + [f"failed: {entry['row']}: {entry['reason']}" for entry in results.get("failed", ())]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; columns in which every cell starts with a digit are aligned to the right."""
    body = [list(row) for row in rows]
    right = [all(row[i][:1].isdigit() or row[i] == NONE for row in body) for i in range(len(header))]
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join("---:" if flush else "---" for flush in right) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body])


def speed_table(results: dict[str, Any], batch: str = "", size: str = "", *engines: str) -> str:
    """Return one line per model, one column per engine and precision.

    Args:
        results: of ``python -m benchmarks speed``.
        batch: images per batch of the rows; that of the first row if empty.
        size: of their images; that of the first row if empty.
        engines: such as "torch" and "openvino-int8"; all that were measured if empty.
    """
    first = row_of(results["rows"][0])
    batch, size = batch or str(first.batch_size), size or first.size
    found = {row_of(row): row for row in results["rows"] if (str(row["batch_size"]), row_of(row).size) == (batch, size)}
    ours = [of for of in found if of.source == OURS]
    columns = [tuple(name.partition("-")[::2]) for name in engines] or [(of.engine, of.precision) for of in ours]
    columns = list(dict.fromkeys((engine, precision or "fp32") for engine, precision in columns))
    networks = dict.fromkeys((of.source, of.model) for of in found if of.source != BASELINE)
    networks = sorted(networks, key=lambda network: network[0] != OURS)
    by_name = {(of.source, of.model, of.engine, of.precision): row for of, row in found.items()}
    sides = size if "x" in size else f"{size} x {size}"
    header = [f"ms, batch {batch}, {sides}", "pytorchcv, eager", *(engine_name(*column) for column in columns)]
    lines = []
    for source, model in networks:
        keys = [(BASELINE, model, "eager", "fp32"), *((source, model, *column) for column in columns)]
        lines.append([f"`{model}`", *(_cell(by_name.get(key)) for key in keys)])
    return markdown(header, lines)


def models_table(results: dict[str, Any]) -> str:
    """Return reported errors, costs, and time and memory in OpenVINO of every model, the lowest error last."""
    rows = [row for row in results["rows"] if (row["engine"], row["batch_size"], row["height"]) == ("openvino", 1, 224)]
    found = {(row["model"], row["precision"]): row for row in rows}
    header = ["model", "error, %", "lowest error, %", "MACs, G", "memory, MB", "fp32, ms", "bf16, ms", "int8, ms"]
    lines = []
    for model, facts in sorted(results["networks"].items(), key=lambda item: -item[1]["lowest_reported_top1_error"]):
        times = [found.get((model, precision)) for precision in ("fp32", "bf16", "int8")]
        errors = [f"{facts[key]:.1f}" for key in ("reported_top1_error", "lowest_reported_top1_error")]
        memory = NONE if times[0] is None else str(times[0]["running_memory_mb"])
        cells = [NONE if row is None else milliseconds(row["milliseconds"]["median"]) for row in times]
        lines.append([f"`{model}`", *errors, f"{facts['macs'] / 1e9:.2f}", memory, *cells])
    return markdown(header, lines)


def sweep_table(results: dict[str, Any]) -> str:
    """Return one line per engine and precision: shapes, crashes, and the largest deviation of each model."""
    rows = results["rows"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = []
    for engine, precision in dict.fromkeys((row["engine"], row["precision"]) for row in rows):
        these = [row for row in rows if (row["engine"], row["precision"]) == (engine, precision)]
        counts = [sum(row["shapes"] for row in these)]
        counts += [sum(len(row[key]) for row in these) for key in ("crashes", "refused")]
        counts += [sum(row["outside_tolerance"] for row in these)]
        worst = {row["model"]: f"{row['largest_deviation']:.1e}" for row in these}
        names = [engine_name(engine, precision), *map(str, counts), f"{these[0]['tolerance']:g}"]
        lines.append([*names, *(worst.get(model, NONE) for model in models)])
    header = ["engine", "shapes", "crashes", "refused", "outside", "tolerance", *(f"`{model}`" for model in models)]
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
    style, name, *options = [*what.split(), ""][: max(2, len(what.split()))]
    styles: dict[str, Callable[..., str]] = {"speed": speed_table, "models": models_table, "full": full_table}
    styles |= {"sweep": sweep_table}
    if style not in styles:
        raise ValueError(f"unknown table {what!r}; known: {', '.join(f'{style} FILE' for style in styles)}")
    return styles[style](_read(results / name), *options)


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
