"""The verb ``predict``: class labels of images."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..factory import DEFAULT_TAG, list_models
from ..utils.text import printable
from .arguments import SOME_FAILED, Verbs, add_engine_arguments, positive

if TYPE_CHECKING:
    from ..inference import ImageResult

PACKAGED_MODEL, PACKAGED_TAG = "hardnet39ds", "FASHION_MNIST"
"""What `predict` takes unless told otherwise: it needs no download."""

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
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--labels", metavar="FILE", help="names of the classes, one per line")
    add_engine_arguments(parser)
    parser.add_argument("--calibration", nargs="+", metavar="PATH", help="for int8: some hundred images like PATH")
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
    results = classifier.stream(arguments.paths, topk=arguments.topk, batch_size=arguments.batch_size)
    counted = _Counted(results)
    searching = any(Path(path).is_dir() for path in arguments.paths)
    for text in _report(_with_progress(counted, searching), arguments.format):
        print(text, flush=sys.stdout.isatty())
    if counted.failed:
        print(f"hardnet: {counted.failed} of {counted.total} images could not be classified", file=sys.stderr)
    return SOME_FAILED if counted.failed else 0


class _Counted:
    """Passes results on and counts them."""

    def __init__(self, results: Iterable[ImageResult]) -> None:
        self._results = results
        self.total = self.failed = 0

    def __iter__(self) -> Iterator[ImageResult]:
        for result in self._results:
            self.total += 1
            self.failed += result.error is not None
            yield result


def _with_progress(results: Iterable[ImageResult], searching: bool) -> Iterator[ImageResult]:
    """Show how far a folder is; not where the results themselves scroll by on the terminal."""
    from ..utils.progress import ProgressBar

    with ProgressBar(None, "classifying", unit="images", enabled=searching and not sys.stdout.isatty()) as bar:
        for result in results:
            bar.update(1)
            yield result


def _report(results: Iterable[ImageResult], style: str) -> Iterator[str]:
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
