"""The picture of a benchmark: reported error against measured latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.rows import OURS, Row


def draw(results: dict[str, Any], path: Path) -> None:
    """Write a picture in the format that the path's suffix names.

    One point per row that has a reported top-1 error; rows of one engine are joined. int8 is not among them, since
    what is reported was measured in floating point. Only the first batch size and resolution of the results is drawn,
    and 224 x 224 is what the errors were reported for.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no row has a reported error, or the file cannot be written.
    """
    figure_class = _figure_class()
    rows = [row for row in results["rows"] if row["reported_top1_error"] is not None]
    if not rows:
        raise ValueError("there is nothing to draw: no measured row has a reported error")
    first = rows[0]
    shape = ("batch_size", "height", "width")
    rows = [row for row in rows if all(row[key] == first[key] for key in shape)]
    figure = figure_class(figsize=(8, 5.5), layout="constrained")  # not pyplot: no window system, no global state
    axes = figure.subplots()
    for label, points in series(rows).items():
        ours = points[0]["source"] == OURS
        axes.plot(
            [point["milliseconds"]["median"] for point in points],
            [point["reported_top1_error"] for point in points],
            marker="o" if ours else "s",
            linestyle="-" if len(points) > 1 else "",
            label=label,
        )
    _name_models(axes, rows)
    axes.set_xscale("log")
    axes.margins(x=0.12)  # room for the names
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks(lambda value, position: f"{value:g}")
    axes.set_xlabel("measured latency (ms), batch {batch_size}, {height} x {width}".format(**first))
    axes.set_ylabel("reported top-1 error on ImageNet (%)")
    axes.set_title(results["machine"]["processor"], fontsize=9)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None


def require_matplotlib() -> None:
    """Raise ImportError, which says how to get it, where matplotlib is not installed."""
    _figure_class()


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise ImportError('the picture needs matplotlib: pip install "hardnet[benchmark]"') from None
    return Figure


def series(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that belong on one line, by its label: ours by engine, pytorchcv's, and each other network."""
    series: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        precision = "" if row["precision"] == "fp32" else f" {row['precision']}"
        of = f"{row['source']}" if row["source"] in (OURS, "pytorchcv") else _name(row)
        series.setdefault(f"{of}, {row['engine']}{precision}", []).append(row)
    return {label: sorted(points, key=lambda point: point["macs"]) for label, points in series.items()}


def _name(row: dict[str, Any]) -> str:
    return Row(**{name: row[name] for name in Row.__dataclass_fields__}).name


def _name_models(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Write every model's name once, beside its slowest point."""
    slowest: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["milliseconds"]["median"] > slowest.get(row["model"], row)["milliseconds"]["median"] - 1e-9:
            slowest[row["model"]] = row
    for name, row in slowest.items():
        at = (row["milliseconds"]["median"], row["reported_top1_error"])
        axes.annotate(name, at, textcoords="offset points", xytext=(6, 4), fontsize=8)
