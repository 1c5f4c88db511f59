"""Lists of input paths, and an output file with one row per image that an interrupted run can continue."""

from __future__ import annotations

import argparse
import glob
import importlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..images.batches import Item, expand
from ..results import ImageResult
from ..utils.files import write_atomically
from ..utils.optional import require
from ..utils.text import csv_row, printable
from .arguments import OutputError

_COLUMNS = ("source", "label", "index", "probability", "predictions", "error")


def add_path_arguments(parser: argparse.ArgumentParser) -> None:
    """Add PATH and ``--from-file``."""
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="an image, a folder, a pattern like '*.jpg', or - (a list on stdin)"
    )
    parser.add_argument("--from-file", metavar="FILE", help="a text file with one path per line")


def list_paths(arguments: argparse.Namespace) -> list[str]:
    """Return the paths of the command line, of the lists, and those that match the patterns.

    Raises:
        ValueError: there are none, or a list cannot be read.
    """
    paths: list[str] = []
    for path in arguments.paths:
        if path == "-":
            paths += sys.stdin.read().splitlines()
        elif glob.has_magic(path) and not os.path.lexists(path):
            paths += sorted(glob.glob(path, recursive=True)) or [path]  # noqa: PTH207 (absolute patterns, too)
        else:
            paths.append(path)
    if arguments.from_file:
        try:
            paths += Path(arguments.from_file).read_text("utf-8", "surrogateescape").splitlines()
        except OSError as error:
            raise ValueError(f"{printable(arguments.from_file)}: cannot be read: {error.strerror}") from None
    if not any(paths):
        raise ValueError("there are no images to work on: give a PATH or --from-file")
    return [path for path in paths if path]


class RowFile:
    """A .jsonl or .csv file with one row per image, written row by row; a context manager.

    Args:
        path: the file.
        resume: keep the rows of an earlier run, except an incomplete last one; False starts anew.

    Raises:
        ValueError: another extension, or the rows are not those of such a file.
        OutputError: the file cannot be written.
    """

    def __init__(self, path: str, *, resume: bool) -> None:
        self._name, self._csv = printable(path), path.lower().endswith(".csv")
        if not self._csv and not path.lower().endswith(".jsonl"):
            raise ValueError(f"{self._name}: results are written to a .jsonl or .csv file")
        self._done: Counter[str] = Counter()
        try:
            self._file: BinaryIO = open(path, "r+b" if resume and Path(path).exists() else "w+b", buffering=0)  # noqa: PTH123, SIM115
            rows = _complete_rows(self._file.read(), quoted=self._csv)
            self._file.truncate(sum(map(len, rows)))
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise self._failure(error) from None
        if self._csv and not rows:
            self._write(csv_row(*_COLUMNS))
        for row in rows[1:] if self._csv else rows:
            self._done[self._source(row.decode("utf-8", "surrogateescape"))] += 1

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def missing(self, paths: Iterable[str]) -> Iterator[Item]:
        """Iterate over the images of the paths that have no row yet."""
        done = self._done.copy()
        for item in expand(paths):
            if done[item.source]:
                done[item.source] -= 1
            else:
                yield item

    def add(self, result: ImageResult) -> None:
        """Append the row of one image."""
        if not self._csv:
            self._write(json.dumps(result.to_dict()))
            return
        entry = result.to_dict()
        top = next(iter(result.predictions), None)
        first = ("", "", "") if top is None else (top.label, top.index, f"{top.probability:.6f}")
        found = json.dumps(entry["predictions"]) if "predictions" in entry else ""
        self._write(csv_row(result.source, *first, found, result.error or ""))

    def _write(self, row: str) -> None:
        content = (row + "\n").encode("utf-8", "surrogateescape")
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"{self._name}: cannot be written: {error.strerror or error}")

    def _source(self, row: str) -> str:
        import csv

        try:
            return next(csv.reader([row]))[0] if self._csv else str(json.loads(row)["source"])
        except (ValueError, LookupError, TypeError, StopIteration, csv.Error):
            raise ValueError(f"{self._name}: cannot be resumed: {row[:50]!r} is not a row of this command") from None


def _complete_rows(content: bytes, quoted: bool) -> list[bytes]:
    """Split into rows that end with a line break; in CSV files, line breaks within quotes end no row."""
    rows, start, end = [], 0, 0
    for line in content.split(b"\n")[:-1]:
        end += len(line) + 1
        if not quoted or content.count(b'"', start, end) % 2 == 0:
            rows.append(content[start:end])
            start = end
    return rows


def write_parquet(path: str, rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> None:
    """Write rows to a Parquet file, which appears when it is complete.

    Args:
        path: the file.
        rows: one dictionary per image; missing columns are null.
        columns: names and Arrow types; "predictions" stands for a list of label, index and probability.

    Raises:
        ImportError: pyarrow is missing.
        OutputError: the file cannot be written.
    """
    pa = require("pyarrow", "15.0", extra="parquet")
    parquet = importlib.import_module("pyarrow.parquet")
    prediction = pa.struct([("label", pa.string()), ("index", pa.int32()), ("probability", pa.float32())])
    types = {"predictions": pa.list_(prediction), "vector": pa.list_(pa.float32()), "text": pa.string()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    remaining = iter(rows)
    try:
        with write_atomically(path) as file, parquet.ParquetWriter(file, schema) as writer:
            while chunk := list(itertools.islice(remaining, 1000)):
                for row in chunk:  # file names need not be UTF-8, Arrow's strings are
                    row.update({key: printable(row[key]) for key in ("source", "error") if row.get(key) is not None})
                writer.write_table(pa.Table.from_pylist(chunk, schema))
    except OSError as error:
        raise OutputError(f"{printable(path)}: cannot be written: {error.strerror or error}") from None
