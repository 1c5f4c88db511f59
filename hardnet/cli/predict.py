"""The verb ``predict``: classify images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.progress import ProgressBar
from ..utils.text import csv_row, printable
from .arguments import (
    Verbs,
    add_engine_arguments,
    add_model_arguments,
    chosen_model,
    positive,
    status_of_images,
)
from .rows import RowFile, add_path_arguments, list_paths, write_parquet

if TYPE_CHECKING:
    from ..images.batches import Item
    from ..results import ImageResult


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("predict", help="classify images")
    add_path_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument("--topk", type=positive, default=5, metavar="K", help="classes per image (default: 5)")
    parser.add_argument("--threshold", type=float, default=0.0, metavar="P", help="least probability of a class")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="images at once (default: 32)")
    add_engine_arguments(parser)
    parser.add_argument("--calibration", nargs="+", metavar="PATH", help="for int8: a few hundred images like PATH")
    parser.add_argument("--format", choices=("table", "json", "jsonl", "csv"), default="table")
    parser.add_argument("--output", metavar="FILE", help="write one row per image: .jsonl, .csv or .parquet")
    parser.add_argument("--resume", action="store_true", help="continue FILE: skip the images that it has")
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    from ..inference import Classifier

    if not 0 <= arguments.threshold <= 1:
        raise ValueError(f"--threshold must lie between 0 and 1, got {arguments.threshold}")
    if arguments.resume and not arguments.output:
        raise ValueError("--resume requires --output")
    paths = list_paths(arguments)
    model, weights = chosen_model(arguments)
    classifier = Classifier(
        model,
        weights=weights,
        device=arguments.device,
        labels=arguments.labels,
        engine=arguments.engine,
        precision=arguments.precision,
        calibration=arguments.calibration,
    )
    total = failed = 0

    def counted(images: Iterable[str | Item]) -> Iterator[ImageResult]:
        nonlocal total, failed
        searching = len(paths) > 1 or Path(paths[0]).is_dir()
        # Not where the results themselves scroll by on the terminal.
        shown = searching and bool(arguments.output or not sys.stdout.isatty())
        with ProgressBar(None, "classifying", unit="images", enabled=shown) as bar:
            for result in classifier.stream(images, topk=arguments.topk, batch_size=arguments.batch_size):
                total += 1
                failed += result.error is not None
                bar.update(1)
                likely = tuple(p for p in result.predictions if p.probability >= arguments.threshold)
                yield replace(result, predictions=likely)

    if (arguments.output or "").lower().endswith(".parquet"):
        if arguments.resume:
            raise ValueError("--resume requires a .jsonl or .csv file")
        columns = {"source": "text", "predictions": "predictions", "error": "text"}
        write_parquet(arguments.output, (result.to_dict() for result in counted(paths)), columns)
    elif arguments.output:
        with RowFile(arguments.output, resume=arguments.resume) as file:
            for result in counted(file.missing(paths)):
                file.add(result)
    else:
        for text in _report(counted(paths), arguments.format):
            print(text, flush=sys.stdout.isatty())
    return status_of_images(failed, total, "classified")


def _report(results: Iterable[ImageResult], style: str) -> Iterator[str]:
    """Yield the output for each result as it comes; ``style`` is "table", "json", "jsonl" or "csv"."""
    return {"table": _as_table, "json": _as_json, "jsonl": _as_jsonl, "csv": _as_csv}[style](results)


def _as_table(results: Iterable[ImageResult]) -> Iterator[str]:
    """A paragraph per image. Unusable ones are in the log, on standard error."""
    for result in results:
        if result.error is None:
            rows = [f"  {p.probability:7.2%}  {printable(p.label)}" for p in result.predictions]
            yield "\n".join([printable(result.source), *rows, ""])


def _as_json(results: Iterable[ImageResult]) -> Iterator[str]:
    """One array, an entry per line, so that it can be read while it grows."""
    before = "["
    for result in results:
        yield before + json.dumps(result.to_dict())
        before = ","
    yield "]" if before == "," else "[]"


def _as_jsonl(results: Iterable[ImageResult]) -> Iterator[str]:
    """One object per line."""
    return (json.dumps(result.to_dict()) for result in results)


def _as_csv(results: Iterable[ImageResult]) -> Iterator[str]:
    yield csv_row("source", "rank", "index", "label", "probability", "error")
    for result in results:
        if not result.predictions:  # an error, or no class above the threshold
            yield csv_row(result.source, "", "", "", "", result.error or "")
        for rank, p in enumerate(result.predictions, 1):
            yield csv_row(result.source, rank, p.index, p.label, f"{p.probability:.6f}", "")
