"""The verb ``extract``: write the embeddings of images to a file."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from ..factory import DEFAULT_TAG, list_models
from ..utils.errors import ImageError
from ..utils.files import write_atomically
from ..utils.progress import ProgressBar
from ..utils.text import csv_row, printable
from .arguments import OutputError, Verbs, positive, status_of_images
from .rows import add_path_arguments, list_paths, write_parquet


def add_verb(verbs: Verbs) -> None:
    """Add ``extract`` to the command line's verbs."""
    parser = verbs.add_parser("extract", help="write the embeddings of images to a file")
    add_path_arguments(parser)
    parser.add_argument("--output", required=True, metavar="FILE", help="a .npz, .csv or .parquet file")
    parser.add_argument("--model", choices=list_models(), default="hardnet39ds")
    parser.add_argument("--weights", default=DEFAULT_TAG, help="a tag or a file (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="images at once (default: 32)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, 0, 1, mps, ... (default: cuda if available)")
    parser.set_defaults(run=_extract)


def _extract(arguments: argparse.Namespace) -> int:
    from ..inference import Extractor

    paths = list_paths(arguments)
    path = Path(arguments.output)
    if path.suffix.lower() == ".parquet":
        return _extract_parquet(arguments, paths)
    write = {".npz": _write_npz, ".csv": _write_csv}.get(path.suffix.lower())
    if write is None or path.is_dir():
        raise ValueError(f"{printable(str(path))}: embeddings are written to a .npz, .csv or .parquet file")
    rows = failed = 0

    def count_and_keep() -> Iterator[tuple[str, Tensor]]:
        nonlocal rows, failed
        extractor = Extractor(arguments.model, weights=arguments.weights, device=arguments.device)
        with ProgressBar(None, "extracting", unit="images") as bar:
            for embedding in extractor.stream(paths, arguments.batch_size):
                bar.update(1)
                if embedding.vector is None:
                    failed += 1
                else:
                    rows += 1
                    yield embedding.source, embedding.vector
        if not rows:
            raise ImageError("none of the images could be used, nothing was written")

    try:
        with write_atomically(path) as file:
            write(file, count_and_keep())
    except OSError as error:
        raise OutputError(f"{printable(str(path))}: cannot be written: {error.strerror or error}") from None
    return status_of_images(failed, rows + failed, "used")


def _extract_parquet(arguments: argparse.Namespace, paths: list[str]) -> int:
    """Write the columns source, embedding and error, one row per image."""
    from ..inference import Extractor

    total = failed = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal total, failed
        extractor = Extractor(arguments.model, weights=arguments.weights, device=arguments.device)
        with ProgressBar(None, "extracting", unit="images") as bar:
            for one in extractor.stream(paths, arguments.batch_size):
                bar.update(1)
                total += 1
                failed += one.error is not None
                vector = None if one.vector is None else one.vector.numpy()
                yield {"source": one.source, "embedding": vector, "error": one.error}

    write_parquet(arguments.output, rows(), {"source": "text", "embedding": "vector", "error": "text"})
    return status_of_images(failed, total, "used")


def _write_csv(file: BinaryIO, rows: Iterator[tuple[str, Tensor]]) -> None:
    """Write the columns source, 0, 1, ... with nine digits, from which float32 values are restored exactly."""
    for number, (source, vector) in enumerate(rows):
        if number == 0:
            file.write((csv_row("source", *range(len(vector))) + "\n").encode())
        line = csv_row(source, *(f"{value:.9g}" for value in vector.tolist())) + "\n"
        file.write(line.encode("utf-8", "surrogateescape"))  # file names need not be UTF-8


def _write_npz(file: BinaryIO, rows: Iterator[tuple[str, Tensor]]) -> None:
    """Write ``embeddings``, float32 (N, num_features), and ``sources``, N strings."""
    import numpy as np

    sources, width = [], 0
    # The file begins with the number of rows: they wait in a temporary file, so that memory holds one at a time.
    with tempfile.TemporaryFile(dir=Path(file.name).parent) as waiting:
        for source, vector in rows:
            sources.append(source)
            width = len(vector)
            waiting.write(vector.numpy().tobytes())
        waiting.flush()
        embeddings = np.memmap(waiting, np.float32, "r", shape=(len(sources), width))
        np.savez(file, embeddings=embeddings, sources=np.array(sources, dtype=np.str_))
