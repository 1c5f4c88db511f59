"""The verb ``extract``: write the embeddings of images to a file."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from ..inference.jobs import Columns
from ..weights.catalog import DEFAULT
from .arguments import (
    Verbs,
    add_calibration,
    add_device,
    add_engine_arguments,
    add_weights_arguments,
    check_calibration,
    load_model,
)
from .jobs import Stream, add_job_arguments, write_on_ray, write_rows
from .rows import add_path_arguments

if TYPE_CHECKING:
    import torch

    from ..inference.results import Embedding


def add_verb(verbs: Verbs) -> None:
    """Add ``extract`` to the command line's verbs."""
    parser = verbs.add_parser("extract", help="write the embeddings of images to a file")
    add_path_arguments(parser)
    add_job_arguments(parser, ".jsonl, .csv, .parquet or .npz", required=True)
    add_weights_arguments(parser)
    add_device(parser)
    add_engine_arguments(parser)
    add_calibration(parser)
    parser.set_defaults(run=_extract)


def _extract(arguments: argparse.Namespace) -> int:
    check_calibration(arguments, required=True)
    if arguments.on:
        if (arguments.engine, arguments.precision) != ("auto", "fp32"):
            raise ValueError("--engine and --precision do not go with --on")
        return write_on_ray(arguments, partial(_on_ray, arguments))

    def start(device: torch.device) -> tuple[Stream, Columns]:
        from ..inference.classifier import Extractor

        options = {name: getattr(arguments, name) for name in ("engine", "precision", "calibration")}
        extractor = Extractor(load_model(arguments), device=device, **options)
        width = extractor.num_features
        columns = Columns("embedding", tuple(range(width)), _cells, width)
        return partial(extractor.stream, batch_size=arguments.batch_size), columns

    return write_rows(arguments, start)


def _on_ray(arguments: argparse.Namespace, images: Any) -> Any:
    from ..ray import embed

    return embed(images, arguments.model, weights=arguments.weights or DEFAULT, batch_size=arguments.batch_size)


def _cells(embedding: Embedding) -> list[str]:
    """Nine digits, from which float32 values are restored exactly."""
    assert embedding.vector is not None  # noqa: S101
    return [f"{value:.9g}" for value in embedding.vector.tolist()]
