"""The verb ``predict``: classify images."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.text import csv_row, printable
from .arguments import (
    Verbs,
    add_calibration,
    add_engine_arguments,
    add_model_arguments,
    chosen_model,
    positive,
    ranks_of_torchrun,
    status_of_images,
)
from .jobs import add_job_arguments, counting_bar, write_on_ray, write_rows
from .rows import Columns, add_path_arguments, list_paths

if TYPE_CHECKING:
    import torch

    from ..images.batches import Item
    from ..results import ImageResult


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("predict", help="classify images")
    add_path_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument("--topk", type=positive, default=5, metavar="K", help="classes per image (default: 5)")
    parser.add_argument(
        "--threshold", type=float, default=0.0, metavar="P", help="leave out classes below this probability"
    )
    add_job_arguments(parser, ".jsonl, .csv or .parquet", required=False)
    add_engine_arguments(parser)
    add_calibration(parser)
    parser.add_argument("--format", choices=("table", "json", "jsonl", "csv"), default="table")
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.threshold <= 1:
        raise ValueError(f"--threshold must lie between 0 and 1, got {arguments.threshold}")
    if arguments.resume and not arguments.output:
        raise ValueError("--resume requires --output")
    if arguments.on:
        return write_on_ray(arguments, partial(_on_ray, arguments), "classified")
    if arguments.output:
        columns = Columns("predictions", ("label", "index", "probability", "predictions"), _cells)
        return write_rows(arguments, lambda device: (_stream(arguments, device), columns), "classifying", "classified")
    if ranks_of_torchrun() > 1:
        raise ValueError("several processes require --output")
    paths = list_paths(arguments)
    # Not where the results themselves scroll by on the terminal.
    shown = (len(paths) > 1 or Path(paths[0]).is_dir()) and not sys.stdout.isatty()
    counts = Counter[bool]()

    def counted() -> Iterator[ImageResult]:
        with counting_bar(paths, "classifying", enabled=shown) as bar:
            for result in _stream(arguments, arguments.device)(paths):
                counts[result.error is not None] += 1
                bar.update(1)
                yield result

    for text in _report(counted(), arguments.format):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()  # whole lines, also where the process is killed
    return status_of_images(counts[True], counts.total(), "classified")


def _on_ray(arguments: argparse.Namespace, images: Any) -> Any:
    from ..ray import predict

    if arguments.calibration:
        raise ValueError("--calibration does not go with --on")
    options = ("labels", "topk", "threshold", "engine", "precision", "batch_size")
    model, weights = chosen_model(arguments)
    return predict(images, model, weights=weights, **{name: getattr(arguments, name) for name in options})


def _stream(arguments: argparse.Namespace, device: str | torch.device) -> Callable[..., Iterator[ImageResult]]:
    from ..inference import Classifier

    model, weights = chosen_model(arguments)
    classifier = Classifier(
        model,
        weights=weights,
        device=device,
        labels=arguments.labels,
        engine=arguments.engine,
        precision=arguments.precision,
        calibration=arguments.calibration,
    )

    def stream(images: Iterable[str | Item]) -> Iterator[ImageResult]:
        for result in classifier.stream(images, topk=arguments.topk, batch_size=arguments.batch_size):
            likely = tuple(p for p in result.predictions if p.probability >= arguments.threshold)
            yield replace(result, predictions=likely)

    return stream


def _cells(result: ImageResult) -> tuple[object, ...]:
    """The most probable class, and all as JSON."""
    top = next(iter(result.predictions), None)
    first = ("", "", "") if top is None else (top.label, top.index, f"{top.probability:.6f}")
    return *first, json.dumps(result.to_dict()["predictions"])


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
