"""The verb ``predict``: classify images."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from ..images.batches import expand
from ..inference.jobs import PREDICTIONS
from ..utils.progress import progress_bar
from ..utils.text import printable
from ..utils.validation import positive
from ..weights.catalog import DEFAULT
from .arguments import (
    Verbs,
    add_calibration,
    add_decode,
    add_engine_arguments,
    add_model_arguments,
    check_calibration,
    first_rank,
    load_model,
    ranks_of_torchrun,
    status_of_images,
)
from .jobs import add_job_arguments, add_path_arguments, file_options, list_paths, report, write_on_ray
from .output import show, shown_on_terminal

if TYPE_CHECKING:
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
    add_decode(parser)
    parser.add_argument("--format", choices=_FORMATS, default="table")
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    from ..inference.classifier import Classifier
    from ..inference.jobs import predict_to_file

    if (arguments.resume or arguments.overwrite) and not arguments.output:
        raise ValueError("--resume and --overwrite require --output")
    check_calibration(arguments, required=not arguments.on)
    if arguments.on:
        return write_on_ray(arguments, partial(_on_ray, arguments))
    if ranks_of_torchrun() > 1 and not arguments.output:
        raise ValueError("several processes require --output")
    paths = list_paths(arguments) if first_rank() else []
    names = ("device", "labels", "engine", "precision", "calibration", "decode")
    options = {name: getattr(arguments, name) for name in names}
    classifier = Classifier(load_model(arguments), **options)
    call = {name: getattr(arguments, name) for name in ("topk", "threshold", "batch_size")}
    if arguments.output:
        return report(predict_to_file(classifier, paths, **call, **file_options(arguments)))
    items = list(expand(paths))
    # Not where the results themselves scroll by on the terminal.
    visible = len(items) > 1 and not shown_on_terminal()
    counts = Counter[bool]()

    def counted() -> Iterator[ImageResult]:
        with progress_bar(len(items), "progress", unit="images", enabled=visible) as bar:
            for result in classifier.stream(items, **call):
                counts[result.error is not None] += 1
                bar.update(1)
                yield result

    for text in _FORMATS[arguments.format](counted()):
        show(text)
    return status_of_images(counts[True], counts.total())


def _on_ray(arguments: argparse.Namespace, images: Any) -> Any:
    from ..ray import predict

    if arguments.calibration:
        raise ValueError("--calibration does not go with --on")
    options = ("labels", "topk", "threshold", "engine", "precision", "batch_size", "decode")
    weights = arguments.weights or DEFAULT
    return predict(images, arguments.model, weights=weights, **{name: getattr(arguments, name) for name in options})


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
    yield PREDICTIONS.csv_header()
    yield from map(PREDICTIONS.csv_line, results)


_FORMATS = {"table": _as_table, "json": _as_json, "jsonl": _as_jsonl, "csv": _as_csv}
"""Functions that yield the output for each result as it comes."""
