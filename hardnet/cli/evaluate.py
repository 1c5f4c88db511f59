"""The verb ``evaluate``: top-1 and top-5 errors."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.config import CONFIGS
from ..training.options import FIELDS
from ..utils.files import write_atomically, writing
from ..utils.optional import require
from ..utils.text import table
from ..utils.validation import positive
from .arguments import (
    SOME_FAILED,
    WEIGHTS_HELP,
    Verbs,
    add_engine_arguments,
    add_threads,
    check_calibration,
    first_rank,
    prepare_process,
    say,
)
from .output import show

if TYPE_CHECKING:
    from ..training.comparison import Row
    from ..training.evaluation import Evaluation
    from ..weights.catalog import WeightsRecord

_MOST_COLUMNS, TOP = 20, 5
_PICTURES = (".png", ".svg", ".pdf")


def _help(option: str) -> str:
    """Return the help text of a training option that has the same meaning here."""
    return str(FIELDS[option].metadata["help"])


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "evaluate",
        help="measure top-1 and top-5 errors",
        description="Measure top-1 and top-5 errors and show them next to the reported ones. Under torchrun the ranks "
        "share the images.",
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help='a folder with val/CLASS/image or CLASS/image, or "fashion-mnist" (its test images)',
    )
    parser.add_argument("--split", default="", help="a subfolder of DATA, or train or test of Fashion-MNIST")
    parser.add_argument("--model", nargs="+", choices=sorted(CONFIGS), default=[], help="one or more")
    parser.add_argument("--weights", nargs="+", default=[], metavar="SOURCE", help=WEIGHTS_HELP)
    parser.add_argument("--size", type=positive, help="side of the centre crop in pixels (default: the weights' own)")
    parser.add_argument("--crop-ratio", type=float, help="crop over resized side (default: the weights' own)")
    parser.add_argument("--batch-size", type=positive, default=64, help="images at once (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help=_help("workers") + " (default: %(default)s)")
    parser.add_argument("--device", default="auto", help=_help("device"))
    add_engine_arguments(parser)
    parser.add_argument(
        "--calibration",
        metavar="DATA",
        help="images for int8 calibration, in a folder like DATA (default: the train split of DATA)",
    )
    parser.add_argument("--skip-bad-images", action="store_true", help=_help("skip_bad_images"))
    parser.add_argument(
        "--expect",
        type=float,
        nargs="?",
        const=0.1,
        metavar="POINTS",
        help="status 1 if an error differs from the reported one by more than POINTS percentage points (default: 0.1)",
    )
    parser.add_argument(
        "--per-class", action="store_true", help="also print the accuracy of every class and the confusion matrix"
    )
    parser.add_argument(
        "--confusion", type=Path, metavar="PICTURE", help="draw the confusion matrix of one model: .png, .svg or .pdf"
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    add_threads(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from ..training.comparison import EvaluateOptions, choose, compare
    from ..training.data import open_evaluation
    from ..utils.distributed import connect

    check_calibration(arguments, required=False)
    arguments.details = arguments.per_class or arguments.confusion is not None
    names = [field.name for field in dataclasses.fields(EvaluateOptions)]
    options = EvaluateOptions(**{name: getattr(arguments, name) for name in names})
    source = open_evaluation(arguments.data, arguments.split)
    chosen = choose(arguments.model, arguments.weights)
    if arguments.confusion is not None:
        require("matplotlib", "3.8", extra="train")
        if arguments.confusion.suffix not in _PICTURES or len(chosen) != 1:
            raise ValueError(f"--confusion takes one model, and a file with the suffix {', '.join(_PICTURES)}")
    prepare_process(arguments)
    calibration = None
    if options.precision == "int8":
        calibration = open_evaluation(arguments.calibration or arguments.data, "train")
    with connect(arguments.device) as ranks:
        rows = list(compare(chosen, source, ranks, options, calibration))
    if first_rank():
        if arguments.confusion is not None:
            _draw_confusion(arguments.confusion, rows[0], source.classes)
        if arguments.format == "json":
            show(_as_json(rows, source.classes if arguments.per_class else ()))
        else:
            show(_as_table(rows))
            for row in rows if arguments.per_class else ():
                show(f"\n{row.model} {row.weights}\n{_class_table(row.measured, source.classes)}")
        for row in rows:
            for message in row.measured.bad:
                say(f"skipped {message}")
    if arguments.expect is None:
        return 0
    wrong = [row for row in rows if row.differs(arguments.expect)]
    if first_rank():
        for row in wrong:
            limit = f"{arguments.expect:g} percentage points"
            say(f"{row.model} {row.weights} differs from what is reported by more than {limit}")
    return SOME_FAILED if wrong else 0


def _draw_confusion(path: Path, row: Row, classes: Sequence[str]) -> None:
    from ..training.confusion import draw_confusion

    figure = draw_confusion(f"{row.model} {row.weights}", classes, row.measured.confusion)
    with writing(path), write_atomically(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)


def _errors(record: Evaluation | WeightsRecord, with_top5: bool) -> str:
    return f"{record.top1_error:.2f}" + (f" / {record.top5_error:.2f}" if with_top5 else "")


def _class_table(measured: Evaluation, classes: Sequence[str]) -> str:
    """Return a line per class: images, accuracy, and the confusion matrix, or the commonest error of many classes."""
    few = len(classes) <= _MOST_COLUMNS
    lines = []
    for index, (name, row) in enumerate(zip(classes, measured.confusion, strict=True)):
        wrong = max((count, other) for other, count in enumerate([*row[:index], -1, *row[index + 1 :]]))
        columns = row if few else [f"{classes[wrong[1]]} ({wrong[0]})" if wrong[0] > 0 else "-"]
        lines.append((name, sum(row), f"{measured.class_accuracies[index]:.2f}", *columns))
    header = ("class", "images", "accuracy (%)", *(classes if few else ("most often taken for",)))
    return table(header, lines)


def _as_table(rows: Sequence[Row]) -> str:
    """Return a table of measured and reported errors."""
    lines = []
    with_top5 = len(rows[0].measured.class_images) > TOP  # with five classes or fewer it is always 0
    for row in rows:
        measured, record = row.measured, row.reported
        reported = ("", "") if record is None else (_errors(record, with_top5), record.reported_by)
        errors = (f"{measured.images:,}", _errors(measured, with_top5), f"{measured.ece:.2f}")
        lines.append((row.model, row.weights, *errors, *reported))
    error = "top-1 / top-5 error (%)" if with_top5 else "top-1 error (%)"
    header = ("model", "weights", "images", error, "ECE (%)", "reported", "reported by")
    return table(header, lines)


def _as_json(rows: Sequence[Row], classes: Sequence[str]) -> str:
    """Return the rows with every count as a JSON array; top-5 for more than five classes, else it is always 0."""
    found = []
    for row in rows:
        measured, record = row.measured, row.reported
        content = {
            "model": row.model,
            "weights": row.weights,
            "preprocessing": dataclasses.asdict(row.preprocessing),
            "images": measured.images,
            "top1_correct": measured.top1,
            "top1_error": measured.top1_error,
            "loss": measured.loss,
            "ece": measured.ece,
            "skipped": len(measured.bad),
            "reported_top1_error": None if record is None else record.top1_error,
            "reported_top5_error": None if record is None else record.top5_error,
        }
        if len(measured.class_images) > TOP:
            content |= {"top5_correct": measured.top5, "top5_error": measured.top5_error}
        if classes:
            accuracies = [None if math.isnan(value) else value for value in measured.class_accuracies]
            content |= {"classes": list(classes), "class_accuracies": accuracies, "confusion": measured.confusion}
        found.append(content)
    return json.dumps(found, indent=2)
