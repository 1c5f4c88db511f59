"""The verb ``predict``: classify images."""

import argparse
import json

from .. import Classifier, ImageResult, predict_to_file, ray
from ..images.batches import expand
from ..inference.jobs import csv_header, csv_line
from ..utils.progress import progress_bar
from ..utils.text import printable
from ..utils.validation import positive
from .arguments import Verbs, check_calibration, first_rank, load_model, pick, ranks_of_torchrun, status_of_images
from .jobs import list_paths, report, write_on_ray
from .output import show, shown_on_terminal


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("predict", help="classify images")
    parser.add("paths", "--from-file", "--model", "--weights", "--labels", "--device")
    parser.add_argument("--topk", type=positive, default=5, metavar="K", help="classes per image (default: 5)")
    parser.add_argument(
        "--threshold", type=float, default=0.0, metavar="P", help="leave out classes below this probability"
    )
    parser.add("--batch-size")
    parser.add_argument("--output", metavar="FILE", help="write one row per image: .jsonl, .csv or .parquet")
    parser.add("--resume", "--overwrite", "--on", "--column", "--engine", "--precision", "--calibration", "--decode")
    parser.add_argument("--format", choices=("table", "json", "jsonl", "csv"), default="table")
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    if (arguments.resume or arguments.overwrite) and not arguments.output:
        raise ValueError("--resume and --overwrite require --output")
    check_calibration(arguments, required=not arguments.on)
    if arguments.on:
        return write_on_ray(arguments, ray.predict, "labels", "topk", "threshold", "engine", "precision")
    if ranks_of_torchrun() > 1 and not arguments.output:
        raise ValueError("several processes require --output")
    paths = list_paths(arguments) if first_rank() else []
    options = pick(arguments, "device", "labels", "engine", "precision", "calibration", "decode")
    classifier = Classifier(load_model(arguments), **options)
    call = pick(arguments, "topk", "threshold", "batch_size")
    if arguments.output:
        job = pick(arguments, "output", "resume", "overwrite")
        return report(predict_to_file(classifier, paths, **call, **job))

    items, failed = list(expand(paths)), 0
    results = classifier.stream(items, **call)
    visible = len(items) > 1 and not shown_on_terminal()  # where the results themselves scroll by
    if arguments.format == "csv":
        show(csv_header())
    with progress_bar(len(items), "progress", unit="images", enabled=visible) as bar:
        for number, result in enumerate(results):
            failed += result.error is not None
            bar.update(1)
            _show(result, arguments.format, first=number == 0)
    if arguments.format == "json":
        show("]" if items else "[]")
    return status_of_images(failed, len(items))


def _show(result: ImageResult, form: str, *, first: bool) -> None:
    """Print a result: a paragraph, a line, or an entry of a JSON array that can be read while it grows."""
    if form == "csv":
        show(csv_line(result))
    elif form == "jsonl":
        show(json.dumps(result.to_dict()))
    elif form == "json":
        show(("[" if first else ",") + json.dumps(result.to_dict()))
    elif result.error is None:  # unusable images are in the log
        rows = [f"  {p.probability:7.2%}  {printable(p.label)}" for p in result.predictions]
        show("\n".join([printable(result.source), *rows, ""]))
