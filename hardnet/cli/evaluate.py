"""The verb ``evaluate``: top-1 and top-5 errors."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.config import CONFIGS
from ..training.options import FIELDS
from ..utils.errors import DataError, TrainingError, WeightsError
from ..utils.files import write_atomically, writing
from ..utils.optional import require
from ..utils.text import counted, printable, table
from ..utils.validation import positive
from ..weights.catalog import DEFAULT
from .arguments import (
    NO_WEIGHTS,
    SOME_FAILED,
    WEIGHTS_HELP,
    Verbs,
    add_decode,
    add_engine_arguments,
    add_threads,
    check_calibration,
    first_rank,
    prepare_process,
    say,
)
from .output import show

if TYPE_CHECKING:
    from ..training.comparison import EvaluationRow
    from ..training.data import ImageSource
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
    parser.add_argument(
        "--held-out", action="store_true", help="only the validation images of the training run of --weights"
    )
    parser.add_argument(
        "--allow-missing-classes",
        action="store_true",
        help="DATA may lack classes of the weights; it is evaluated on the others",
    )
    parser.add_argument("--model", nargs="+", choices=sorted(CONFIGS), default=[], help="one or more")
    parser.add_argument("--weights", nargs="+", default=[], metavar="SOURCE", help=WEIGHTS_HELP)
    parser.add_argument("--size", type=positive, help="side of the centre crop in pixels (default: the weights' own)")
    parser.add_argument("--crop-ratio", type=float, help="crop over resized side (default: the weights' own)")
    parser.add_argument("--batch-size", type=positive, default=64, help="images at once (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help=_help("workers") + " (default: %(default)s)")
    parser.add_argument("--device", default="auto", help=_help("device"))
    add_engine_arguments(parser)
    add_decode(parser)
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
    from ..training.comparison import EvaluateOptions, count_trained, evaluate_weights, find_run, read_held_out
    from ..training.data import open_evaluation, open_listed
    from ..utils.distributed import connect
    from ..weights.load import Loaded, load_weights

    check_calibration(arguments, required=False)
    names = [field.name for field in dataclasses.fields(EvaluateOptions)]
    options = EvaluateOptions(**{name: getattr(arguments, name) for name in names})
    pairs = list(itertools.product(arguments.model or [None], arguments.weights or [DEFAULT]))
    if arguments.confusion is not None:
        require("matplotlib", "3.8", extra="train")
        if arguments.confusion.suffix not in _PICTURES or len(pairs) != 1:
            raise ValueError(f"--confusion takes one model, and a file with the suffix {', '.join(_PICTURES)}")
    runs = [run for _, weights in pairs if (run := find_run(weights)) is not None]
    if arguments.held_out:
        if len(pairs) != 1 or not runs:
            raise ValueError("--held-out takes --weights of one training run: its folder, or a file in it")
        source = open_listed(arguments.data, read_held_out(runs[0]))
    else:
        source = open_evaluation(arguments.data, arguments.split)
    prepare_process(arguments)
    calibration = None
    if options.precision == "int8":
        calibration = open_evaluation(arguments.calibration or arguments.data, "train")
    with connect(arguments.device) as ranks:
        if arguments.expect is not None:
            pairs = [(name, load_weights(weights, model=name, progress=ranks.first)) for name, weights in pairs]
            for _, weights in pairs:
                if isinstance(weights, Loaded) and weights.record is None:
                    raise ValueError(f"no errors of {weights.name} are reported: --expect takes the catalogue's only")
        if ranks.first:
            for run in dict.fromkeys(runs):
                if trained := count_trained(run, source):
                    say(
                        f"{printable(str(run))} was trained on {trained} of these {counted(len(source), 'image')}, so "
                        "its error is too low: --held-out takes the others"
                    )
        rows, status = [], 0
        report = _JsonRows(arguments.per_class) if arguments.format == "json" else _TableRows(pairs, source, arguments)
        for name, weights in pairs:
            try:
                loaded = load_weights(weights, model=name, progress=ranks.first)
                rows.append(evaluate_weights(loaded, source, ranks, options, calibration))
            except (WeightsError, DataError, TrainingError) as error:
                if len(pairs) == 1 or ranks.size > 1:  # ranks must stay together
                    raise
                say(error)
                status = NO_WEIGHTS if isinstance(error, WeightsError) else SOME_FAILED
                continue
            if ranks.first:
                report.add(rows[-1])
    if first_rank():
        report.end()
        if arguments.confusion is not None:
            _draw_confusion(arguments.confusion, rows[0])
        for message in dict.fromkeys(message for row in rows for message in row.measured.bad):
            say(f"skipped {message}")
        for row in rows:
            if arguments.expect is not None and row.differs(arguments.expect):
                limit = f"{arguments.expect:g} percentage points"
                say(f"{row.model} {row.weights} differs from what is reported by more than {limit}")
    wrong = arguments.expect is not None and any(row.differs(arguments.expect) for row in rows)
    return status or (SOME_FAILED if wrong else 0)


def _draw_confusion(path: Path, row: EvaluationRow) -> None:
    from ..training.confusion import draw_confusion

    figure = draw_confusion(f"{row.model} {row.weights}", row.classes, row.measured.confusion)
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


class _TableRows:
    """Print a line per model, each when it has been measured."""

    def __init__(self, pairs: Sequence[tuple[str | None, Any]], source: ImageSource, arguments: argparse.Namespace):
        self._with_top5 = len(source.classes) > TOP  # with five classes or fewer it is always 0
        self._per_class = arguments.per_class
        error = "top-1 / top-5 error (%)" if self._with_top5 else "top-1 error (%)"
        names = [str(getattr(weights, "tag", weights)) for _, weights in pairs]
        self._header = ("model", "weights", "images", error, "ECE (%)", "reported", "reported by")
        self._widths = [12, max(map(len, ["IMAGENET1K_V1", *names])), 9, len(error), 7, 15 if self._with_top5 else 8, 0]
        self._started = False

    def add(self, row: EvaluationRow) -> None:
        """Print the errors of a model, and those of its classes if they were asked for."""
        measured, record = row.measured, row.reported
        reported = ("", "") if record is None else (_errors(record, self._with_top5), record.reported_by)
        errors = (f"{measured.images:,}", _errors(measured, self._with_top5), f"{measured.ece:.2f}")
        if not self._started:
            self._show(self._header)
        self._started = True
        self._show((row.model, printable(row.weights), *errors, *reported))
        if self._per_class:
            show(f"\n{_class_table(measured, list(map(printable, row.classes)))}\n")

    def _show(self, cells: Sequence[str]) -> None:
        texts = [
            cell.rjust(width) if 2 <= column <= 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, self._widths, strict=True))
        ]
        show("  ".join(texts).rstrip())

    def end(self) -> None:
        """Do nothing: all lines have been printed."""


class _JsonRows:
    """Print a JSON array with an object per model, each when it has been measured."""

    def __init__(self, per_class: bool) -> None:
        self._per_class = per_class
        self._start = "["

    def add(self, row: EvaluationRow) -> None:
        """Print every count of a model; top-5 for more than five classes, else it is always 0."""
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
        if self._per_class:
            accuracies = [None if math.isnan(value) else value for value in measured.class_accuracies]
            content |= {"classes": list(row.classes), "class_accuracies": accuracies, "confusion": measured.confusion}
        show(self._start + json.dumps(content, indent=2))
        self._start = ","

    def end(self) -> None:
        """Close the array."""
        show("]" if self._start == "," else "[]")
