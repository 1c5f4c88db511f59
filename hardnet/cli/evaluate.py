"""The verb ``evaluate``: top-1 and top-5 errors."""

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..models.config import CONFIGS
from ..training.comparison import EvaluationRow, count_trained, evaluate_weights, find_run, read_held_out
from ..training.data import open_evaluation, open_listed
from ..training.evaluation import TOP, Evaluation
from ..training.metrics import draw_confusion
from ..training.options import FIELDS
from ..utils.distributed import connect
from ..utils.errors import DataError, TrainingError, WeightsError
from ..utils.optional import require
from ..utils.text import counted, printable, table
from ..utils.validation import positive
from ..weights.catalog import DEFAULT, WeightsRecord
from ..weights.load import Source, load_weights
from .arguments import NO_WEIGHTS, OPTIONS, SOME_FAILED, Verbs, check_calibration, pick, prepare_process, say
from .output import show

_MOST_COLUMNS = 20
_EVALUATION = (
    "size", "crop_ratio", "batch_size", "workers", "engine", "precision", "decode", "skip_bad_images",
    "allow_missing_classes",
)  # fmt: skip
_PICTURES = (".png", ".svg", ".pdf")


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "evaluate",
        help="measure top-1 and top-5 errors",
        description="Measure top-1 and top-5 errors and show them next to the reported ones. Under torchrun the ranks "
        "share the images.",
    )
    add = parser.add_argument
    training = {name: str(field.metadata["help"]) for name, field in FIELDS.items()}  # of options of the same meaning
    add("data", metavar="DATA", help='a folder with val/CLASS/image or CLASS/image, or "fashion-mnist" (test images)')
    add("--split", default="", help="a subfolder of DATA, or train or test of Fashion-MNIST")
    add("--held-out", action="store_true", help="only the validation images of the training run of --weights")
    text = "DATA may lack classes of the weights; it is evaluated on the others"
    add("--allow-missing-classes", action="store_true", help=text)
    add("--model", nargs="+", choices=sorted(CONFIGS), default=[], help="one or more")
    add("--weights", nargs="+", default=[], **OPTIONS["--weights"])
    add("--size", type=positive, help="side of the centre crop in pixels (default: the weights' own)")
    add("--crop-ratio", type=float, help="crop over resized side (default: the weights' own)")
    add("--batch-size", type=positive, default=64, help="images at once (default: %(default)s)")
    add("--workers", type=int, default=0, help=training["workers"] + " (default: %(default)s)")
    add("--device", default="auto", help=training["device"])
    parser.add("--engine", "--precision", "--decode")
    text = "images for int8 calibration, in a folder like DATA (default: the train split of DATA)"
    add("--calibration", metavar="DATA", help=text)
    add("--skip-bad-images", action="store_true", help=training["skip_bad_images"])
    text = "status 1 if an error differs from the reported one by more than POINTS percentage points (default: 0.1)"
    add("--expect", type=float, nargs="?", const=0.1, metavar="POINTS", help=text)
    add("--per-class", action="store_true", help="also print the accuracy of every class and the confusion matrix")
    text = f"draw the confusion matrix of one model: {', '.join(_PICTURES)}"
    add("--confusion", type=Path, metavar="PICTURE", help=text)
    add("--format", choices=("table", "json"), default="table")
    parser.add("--threads")
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    check_calibration(arguments, required=False)
    pairs: list[tuple[str | None, Source]]
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
    if arguments.precision == "int8":
        calibration = open_evaluation(arguments.calibration or arguments.data, "train")
    rows: list[EvaluationRow] = []
    status = 0
    with connect(arguments.device) as ranks:
        if arguments.expect is not None:
            for index, (name, weights) in enumerate(pairs):
                loaded = load_weights(weights, model=name, progress=ranks.first)
                pairs[index] = (name, loaded)
                if loaded.record is None:
                    raise ValueError(f"no errors of {loaded.name} are reported: --expect takes the catalogue's only")
        for run in dict.fromkeys(runs):
            if ranks.first and (trained := count_trained(run, source)):
                say(
                    f"{printable(str(run))} was trained on {trained} of these {counted(len(source), 'image')}, so its "
                    "error is too low: --held-out takes the others"
                )
        for name, weights in pairs:
            try:
                loaded = load_weights(weights, model=name, progress=ranks.first)
                options = pick(arguments, *_EVALUATION)
                rows.append(evaluate_weights(loaded, source, ranks, calibration=calibration, **options))
            except (WeightsError, DataError, TrainingError) as error:
                if len(pairs) == 1 or ranks.size > 1:  # ranks must stay together
                    raise
                say(error)
                status = NO_WEIGHTS if isinstance(error, WeightsError) else SOME_FAILED
                continue
            if ranks.first and arguments.format == "json":
                content = json.dumps(_as_dict(rows[-1], arguments.per_class), indent=2)
                show(("[" if len(rows) == 1 else ",") + content)
            elif ranks.first:
                _show_row(rows, arguments)
    different = [row for row in rows if arguments.expect is not None and row.differs(arguments.expect)]
    if ranks.first:
        if arguments.format == "json":
            show("]" if rows else "[]")
        if arguments.confusion is not None:
            title = f"{rows[0].model} {rows[0].weights}"
            draw_confusion(arguments.confusion, title, rows[0].classes, rows[0].measured.confusion)
        for message in dict.fromkeys(message for row in rows for message in row.measured.bad):
            say(f"skipped {message}")
        for row in different:
            limit = f"{arguments.expect:g} percentage points"
            say(f"{row.model} {row.weights} differs from what is reported by more than {limit}")
    return status or (SOME_FAILED if different else 0)


def _show_row(rows: Sequence[EvaluationRow], arguments: argparse.Namespace) -> None:
    """Print the last row, in columns of fixed widths since later rows are not known yet; the first has a header."""
    row = rows[-1]
    measured, record = row.measured, row.reported
    with_top5 = len(row.classes) > TOP  # of five classes or fewer it is always 0

    def errors(counts: Evaluation | WeightsRecord) -> str:
        return f"{counts.top1_error:.2f}" + (f" / {counts.top5_error:.2f}" if with_top5 else "")

    error = "top-1 / top-5 error (%)" if with_top5 else "top-1 error (%)"
    lines = [("model", "weights", "images", error, "ECE (%)", "reported", "reported by")] if len(rows) == 1 else []
    cells = (row.model, printable(row.weights), f"{measured.images:,}", errors(measured), f"{measured.ece:.2f}")
    lines.append((*cells, *((errors(record), record.reported_by) if record else ("", ""))))
    name = max(map(len, ["IMAGENET1K_V1", *arguments.weights]))
    widths = ("<12", f"<{name}", ">9", f">{len(error)}", ">7", ">15" if with_top5 else ">8", "")
    for line in lines:
        show("  ".join(map(format, line, widths)).rstrip())
    if arguments.per_class:
        show(f"\n{_class_table(measured, list(map(printable, row.classes)))}\n")


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


def _as_dict(row: EvaluationRow, per_class: bool) -> dict[str, Any]:
    """Return every count of a model for JSON; top-5 for more than five classes, else it is always 0."""
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
        "reported_top1_error": record and record.top1_error,
        "reported_top5_error": record and record.top5_error,
    }
    if len(row.classes) > TOP:
        content |= {"top5_correct": measured.top5, "top5_error": measured.top5_error}
    if per_class:
        accuracies = [None if math.isnan(value) else value for value in measured.class_accuracies]
        content |= {"classes": list(row.classes), "class_accuracies": accuracies, "confusion": measured.confusion}
    return content
