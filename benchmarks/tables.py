"""Make Markdown tables from results, for the terminal and for the pages.

A table of a page stands between two comments, the first of which names it; files are those of benchmarks/results:

    <!-- generated: speed cpu.json 1 224 torch openvino-int8 -->  shape, engines; "ours": no others;
                                                                 "baseline": a column for pytorchcv
    <!-- generated: models cpu.json -->                           reported errors, costs, and times of OpenVINO
    <!-- generated: end-to-end end-to-end.json -->                every row
    <!-- end of generated -->
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.networks import BASELINE, OURS
from benchmarks.protocol import case_of, read_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- generated: ([^>]*?) -->\n)(.*?)(<!-- end of generated -->)", re.DOTALL)


def milliseconds(value: float) -> str:
    """Return three significant digits, without decimals from 100 on."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; columns in which every cell starts with a digit are aligned to the right."""
    body = [list(row) for row in rows]
    right = [all(row[i][:1].isdigit() or row[i] == "-" for row in body) for i in range(len(header))]
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join("---:" if flush else "---" for flush in right) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body])


def engine_name(engine: str, precision: str = "fp32") -> str:
    """Return the heading of a column."""
    name = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}.get(engine, engine)
    return name if precision == "fp32" else f"{name} {precision}"


def speed_table(results: dict[str, Any], batch: str, size: str, *engines: str) -> str:
    """Return one line per model, one column per engine such as "torch" or "openvino-int8"; by default all measured.

    Where pytorchcv has no such network, the peak memory in MB stands in place of the speed-up.
    """
    rows = [row for row in results["rows"] if (str(row["batch_size"]), case_of(row).size) == (batch, size)]
    compared = any(row["source"] == BASELINE for row in rows)
    cells = {case_of(row).network: _cell(row, compared) for row in rows}
    columns = [(*name.split("-"), "fp32")[:2] for name in engines if name not in ("ours", "baseline")]
    columns = columns or list(dict.fromkeys((row["engine"], row["precision"]) for row in rows if row["source"] == OURS))
    networks = dict.fromkeys((row["source"], row["model"]) for row in rows if row["source"] == OURS)
    if "ours" not in engines:
        networks |= dict.fromkeys((row["source"], row["model"]) for row in rows if row["source"] != BASELINE)
    baseline = compared and "baseline" in engines
    unit = "ms" if compared else "ms (MB)"
    header = [f"{unit}, batch {batch}, {size if 'x' in size else f'{size}x{size}'}"] + baseline * ["pytorchcv, eager"]
    lines = []
    for source, model in networks:
        keys = baseline * [(BASELINE, model, "eager", "fp32")] + [(source, model, *column) for column in columns]
        lines.append([f"`{model}`", *(cells.get(key, "-") for key in keys)])
    return markdown(header + [engine_name(*column) for column in columns], lines)


def _cell(row: dict[str, Any], compared: bool) -> str:
    ratio = row["times_baseline"]
    faster = "" if ratio is None or row["source"] == BASELINE else f" ({ratio:.2f}x)"
    return milliseconds(row["milliseconds"]["median"]) + (faster if compared else f" ({row['running_memory_mb']})")


def models_table(results: dict[str, Any]) -> str:
    """Return reported errors, costs, and time and memory in OpenVINO of every model, the lowest error last."""
    rows = [row for row in results["rows"] if (row["engine"], row["batch_size"], row["height"]) == ("openvino", 1, 224)]
    by_name = {(row["model"], row["precision"]): row for row in rows}
    header = ["model", "error, %", "lowest error, %", "MACs, G", "memory, MB", "fp32, ms", "bf16, ms", "int8, ms"]
    lines = []
    for model, facts in sorted(results["networks"].items(), key=lambda item: -item[1]["lowest_reported_top1_error"]):
        times = [by_name.get((model, precision)) for precision in ("fp32", "bf16", "int8")]
        errors = [f"{facts[key]:.1f}" for key in ("reported_top1_error", "lowest_reported_top1_error")]
        memory = "-" if times[0] is None else str(times[0]["running_memory_mb"])
        cells = ["-" if row is None else milliseconds(row["milliseconds"]["median"]) for row in times]
        lines.append([f"`{model}`", *errors, f"{facts['macs'] / 1e9:.2f}", memory, *cells])
    return markdown(header, lines)


def end_to_end_table(results: dict[str, Any]) -> str:
    """Return every row of ``python -m benchmarks end-to-end``."""
    parts = ("images/s", "decode, ms", "preprocess, ms", "model alone, images/s")
    lines = []
    for row in results["rows"]:
        names = [f"`{row['model']}`", engine_name(row["engine"], row["precision"])]
        names += ["{} x {}".format(*row["pixels"]), row["decoding"]]
        figures = (row["images_per_second"], row["decode_ms"], row["preprocess_ms"], 1000 / row["model_ms"])
        lines.append([*names, *(f"{figure:.1f}" for figure in figures)])
    return markdown(["model", "engine", "files", "decoding", *parts], lines)


TABLES = {"speed": speed_table, "models": models_table, "end-to-end": end_to_end_table}


def stale(pages: Iterable[Path], results: Path) -> dict[Path, str]:
    """Return the pages whose tables differ from the results, with their new content."""

    def render(block: re.Match[str]) -> str:
        kind, name, *options = block[2].split()
        return f"{block[1]}\n{TABLES[kind](read_json(results / name), *options)}\n\n{block[4]}"

    texts = {path: path.read_text(encoding="utf-8") for path in pages}
    new = {path: BLOCK.sub(render, page) for path, page in texts.items()}
    return {path: page for path, page in new.items() if page != texts[path]}
