"""The verb ``extract``: write the embeddings of images to a file."""

import argparse

from .. import Extractor, extract_to_file, ray
from .arguments import Verbs, check_calibration, first_rank, load_model, pick
from .jobs import list_paths, report, write_on_ray


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("extract", help="write the embeddings of images to a file")
    parser.add("paths", "--from-file", "--batch-size")
    text = "write one row per image: .jsonl, .csv, .parquet or .npz"
    parser.add_argument("--output", required=True, metavar="FILE", help=text)
    parser.add("--resume", "--overwrite", "--on", "--column", "--model", "--weights", "--device")
    parser.add("--engine", "--precision", "--calibration", "--decode")
    parser.set_defaults(run=_extract)


def _extract(arguments: argparse.Namespace) -> int:
    check_calibration(arguments, required=True)
    if arguments.on:
        if (arguments.engine, arguments.precision) != ("auto", "fp32"):
            raise ValueError("--engine and --precision do not go with --on")
        return write_on_ray(arguments, ray.embed)
    paths = list_paths(arguments) if first_rank() else []
    options = pick(arguments, "device", "engine", "precision", "calibration", "decode")
    job = pick(arguments, "output", "resume", "overwrite", "batch_size")
    return report(extract_to_file(Extractor(load_model(arguments), **options), paths, **job))
