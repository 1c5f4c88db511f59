"""The verb ``predict``: classify images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..factory import DEFAULT_TAG, list_models
from ..utils.progress import ProgressBar
from ..utils.text import csv_row, printable
from .arguments import Verbs, add_engine_arguments, positive, status_of_images

if TYPE_CHECKING:
    from ..inference import ImageResult

PACKAGED_MODEL, PACKAGED_TAG = "hardnet39ds", "FASHION_MNIST"
"""The defaults of `predict`: they need no download."""

_PACKAGED_NOTE = (
    f"hardnet: {PACKAGED_MODEL} {PACKAGED_TAG}, ten kinds of garments; for photographs of other things: "
    f"--weights {DEFAULT_TAG} (a download)"
)


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("predict", help="classify images")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="an image, or a folder that is searched for images")
    parser.add_argument("--model", choices=list_models(), help=f"default: {PACKAGED_MODEL}")
    parser.add_argument(
        "--weights",
        help=f"a tag or a file; default: {DEFAULT_TAG} with --model, else {PACKAGED_TAG}, which needs no download",
    )
    parser.add_argument("--topk", type=positive, default=5, metavar="K", help="classes per image (default: 5)")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="images at once (default: 32)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, 0, 1, mps, ... (default: cuda if available)")
    parser.add_argument("--labels", metavar="FILE", help="names of the classes, one per line")
    add_engine_arguments(parser)
    parser.add_argument("--calibration", nargs="+", metavar="PATH", help="for int8: a few hundred images like PATH")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table")
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    from ..inference import Classifier

    model, weights = arguments.model or PACKAGED_MODEL, arguments.weights or DEFAULT_TAG
    if arguments.model is None and arguments.weights is None:
        weights = PACKAGED_TAG
        print(_PACKAGED_NOTE, file=sys.stderr)
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

    def counted() -> Iterator[ImageResult]:
        nonlocal total, failed
        searching = any(Path(path).is_dir() for path in arguments.paths)
        # Not where the results themselves scroll by on the terminal.
        with ProgressBar(None, "classifying", unit="images", enabled=searching and not sys.stdout.isatty()) as bar:
            for result in classifier.stream(arguments.paths, topk=arguments.topk, batch_size=arguments.batch_size):
                total += 1
                failed += result.error is not None
                bar.update(1)
                yield result

    for text in _report(counted(), arguments.format):
        print(text, flush=sys.stdout.isatty())
    return status_of_images(failed, total, "classified")


def _report(results: Iterable[ImageResult], style: str) -> Iterator[str]:
    """Yield the output for each result as it comes; ``style`` is "table", "json" or "csv"."""
    return {"table": _as_table, "json": _as_json, "csv": _as_csv}[style](results)


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
    yield csv_row("source", "rank", "index", "label", "probability", "error")
    for result in results:
        if result.error is not None:
            yield csv_row(result.source, "", "", "", "", result.error)
        for rank, p in enumerate(result.predictions, 1):
            yield csv_row(result.source, rank, p.index, p.label, f"{p.probability:.6f}", "")
