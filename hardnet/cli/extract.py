"""The verb ``extract``: write the embeddings of images to a file."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from ..weights.catalog import DEFAULT
from .arguments import (
    Verbs,
    add_calibration,
    add_decode,
    add_device,
    add_engine_arguments,
    add_weights_arguments,
    check_calibration,
    first_rank,
    load_model,
)
from .jobs import add_job_arguments, add_path_arguments, file_options, list_paths, report, write_on_ray


def add_verb(verbs: Verbs) -> None:
    """Add ``extract`` to the command line's verbs."""
    parser = verbs.add_parser("extract", help="write the embeddings of images to a file")
    add_path_arguments(parser)
    add_job_arguments(parser, ".jsonl, .csv, .parquet or .npz", required=True)
    add_weights_arguments(parser)
    add_device(parser)
    add_engine_arguments(parser)
    add_calibration(parser)
    add_decode(parser)
    parser.set_defaults(run=_extract)


def _extract(arguments: argparse.Namespace) -> int:
    from ..inference.classifier import Extractor
    from ..inference.jobs import extract_to_file

    check_calibration(arguments, required=True)
    if arguments.on:
        if (arguments.engine, arguments.precision) != ("auto", "fp32"):
            raise ValueError("--engine and --precision do not go with --on")
        return write_on_ray(arguments, partial(_on_ray, arguments))

    paths = list_paths(arguments) if first_rank() else []
    options = {name: getattr(arguments, name) for name in ("device", "engine", "precision", "calibration", "decode")}
    extractor = Extractor(load_model(arguments), **options)
    return report(extract_to_file(extractor, paths, batch_size=arguments.batch_size, **file_options(arguments)))


def _on_ray(arguments: argparse.Namespace, images: Any) -> Any:
    from ..ray import embed

    options = {name: getattr(arguments, name) for name in ("batch_size", "decode")}
    return embed(images, arguments.model, weights=arguments.weights or DEFAULT, **options)
