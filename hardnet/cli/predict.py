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

from ..inference.jobs import Columns
from ..utils.text import printable
from ..utils.validation import positive
from ..weights.catalog import DEFAULT
from .arguments import (
    Verbs,
    add_calibration,
    add_engine_arguments,
    add_model_arguments,
    check_calibration,
    load_model,
    ranks_of_torchrun,
    status_of_images,
)
from .jobs import add_job_arguments, counting_bar, write_on_ray, write_rows
from .rows import add_path_arguments, list_paths

if TYPE_CHECKING:
    import torch

    from ..images.batches import Item
    from ..inference.results import ImageResult


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
    parser.add_argument("--format", choices=_FORMATS, default="table")
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.threshold <= 1:
        raise ValueError(f"--threshold must lie between 0 and 1, got {arguments.threshold}")
    if arguments.resume and not arguments.output:
        raise ValueError("--resume requires --output")
    check_calibration(arguments, required=not arguments.on)
    if arguments.on:
        return write_on_ray(arguments, partial(_on_ray, arguments))
    if arguments.output:
        return write_rows(arguments, lambda device: (_stream(arguments, device), _COLUMNS))
    if ranks_of_torchrun() > 1:
        raise ValueError("several processes require --output")
    paths = list_paths(arguments)
    # Not where the results themselves scroll by on the terminal.
    shown = (len(paths) > 1 or Path(paths[0]).is_dir()) and not sys.stdout.isatty()
    counts = Counter[bool]()

    def counted() -> Iterator[ImageResult]:
        with counting_bar(paths, enabled=shown) as bar:
            for result in _stream(arguments, arguments.device)(paths):
                counts[result.error is not None] += 1
                bar.update(1)
                yield result

    for text in _FORMATS[arguments.format](counted()):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()  # whole lines, also where the process is killed
    return status_of_images(counts[True], counts.total())


def _on_ray(arguments: argparse.Namespace, images: Any) -> Any:
    from ..ray import predict

    if arguments.calibration:
        raise ValueError("--calibration does not go with --on")
    options = ("labels", "topk", "threshold", "engine", "precision", "batch_size")
    weights = arguments.weights or DEFAULT
    return predict(images, arguments.model, weights=weights, **{name: getattr(arguments, name) for name in options})


def _stream(arguments: argparse.Namespace, device: str | torch.device) -> Callable[..., Iterator[ImageResult]]:
    from ..inference.classifier import Classifier

    classifier = Classifier(
        load_model(arguments),
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
    """The rows of an output file."""
    yield _COLUMNS.csv_header()
    yield from map(_COLUMNS.csv_line, results)


_COLUMNS = Columns("predictions", ("label", "index", "probability", "predictions"), _cells)
_FORMATS = {"table": _as_table, "json": _as_json, "jsonl": _as_jsonl, "csv": _as_csv}
"""Functions that yield the output for each result as it comes."""
