"""Resumable output with one row per image."""

from __future__ import annotations

import base64
import importlib
import itertools
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..images.batches import Item, expand
from ..utils.files import write_atomically, writing
from ..utils.optional import require
from ..utils.text import csv_row, printable
from .results import Embedding, ImageResult, arrow_schema


class Columns(NamedTuple):
    """The columns of a verb's output."""

    value: str
    """The column of the results, in .jsonl and .parquet files; the others are "source" and "error"."""
    csv: tuple[object, ...]
    """Of a .csv file, between the source and the error."""
    cells: Callable[[Any], Iterable[object]]
    """A result without an error -> its cells of these columns."""
    width: int = 0
    """Of the vectors, for .npz files; 0 where there are none."""

    def csv_header(self) -> str:
        """Return the first line of a .csv file."""
        return csv_row("source", *self.csv, "error")

    def csv_line(self, result: Any) -> str:
        """Return the line of an image in a .csv file."""
        cells = ("" for _ in self.csv) if result.error else self.cells(result)
        return csv_row(result.source, *cells, result.error or "")


class RowFile:
    """An output file with one row per image: .jsonl, .csv, .parquet, or .npz for vectors.

    A .jsonl or .csv file grows row by row. The rows of a .parquet or .npz file wait in a file with ".part" added to its
    name, until :meth:`finish` writes the file itself.

    Raises:
        ValueError: another extension.
        ImportError: pyarrow is missing for .parquet.
    """

    def __init__(self, path: str, columns: Columns) -> None:
        self._path, self._name, self._columns = path, printable(path), columns
        self._suffix = Path(path).suffix.lower()
        known = [".jsonl", ".csv", ".parquet", *([".npz"] if columns.width else [])]
        if self._suffix not in known or Path(path).is_dir():
            raise ValueError(f"{self._name}: results are written to a {', '.join(known[:-1])} or {known[-1]} file")
        if self._suffix == ".parquet":
            require("pyarrow", "15.0", extra="parquet")
        self._csv, self._grows = self._suffix == ".csv", self._suffix in (".jsonl", ".csv")
        self._rows = Path(path if self._grows else f"{path}.part")
        self._file: BinaryIO | None = None
        self.skipped = 0
        """How many images :meth:`missing` has found to be there."""

    def open(self, *, resume: bool) -> None:
        """Open the file for :meth:`add`.

        Args:
            resume: keep the rows of an earlier run, except an incomplete last one; False starts anew.

        Raises:
            ValueError: there is nothing to resume: the file is complete, and is not of a kind that grows.
            OutputError: the file cannot be written.
        """
        if resume and not self._grows and not self._rows.exists() and Path(self._path).exists():
            raise ValueError(f"{self._name}: is complete; --resume adds images to .jsonl and .csv files only")
        with writing(self._path):
            self._file = self._rows.open("r+b" if resume and self._rows.exists() else "w+b")
            end = sum(map(len, _complete_rows(self._rows, quoted=self._csv)))
            self._file.truncate(end)
            self._file.seek(end)
        if self._csv and not end:
            self.add([self._columns.csv_header()])

    def missing(self, paths: Iterable[str]) -> Iterator[Item]:
        """Iterate over the images of the paths that have no row yet.

        The rows are read along with the paths; only those in another order than the paths are held in memory.

        Raises:
            ValueError: while iterating, the rows are not those of this verb.
        """
        rows, others = self._sources(), None
        for item in expand(paths):
            if others is None:
                source = next(rows, None)
                if source == item.source:
                    self.skipped += 1
                    continue
                others = Counter(() if source is None else (source, *rows))
            if others[item.source]:
                others[item.source] -= 1
                self.skipped += 1
            else:
                yield item

    def line(self, result: ImageResult | Embedding) -> str:
        """Return the row of one image, for :meth:`add`."""
        if self._csv:
            return self._columns.csv_line(result)
        if self._grows or not isinstance(result, Embedding) or result.vector is None:
            return json.dumps(result.to_dict())
        packed = base64.b64encode(result.vector.numpy().astype("<f4").tobytes()).decode()
        return json.dumps({"source": result.source, "embedding": packed})

    def add(self, lines: Iterable[str]) -> None:
        """Append rows.

        Raises:
            OutputError: the file cannot be written.
        """
        assert self._file is not None, "open the file first"  # noqa: S101
        with writing(self._path):
            self._file.writelines((line + "\n").encode("utf-8", "surrogateescape") for line in lines)
            self._file.flush()

    def finish(self) -> None:
        """Close the file; write the .parquet or .npz file from the rows.

        Raises:
            OutputError: the file cannot be written; the rows remain, and ``resume`` continues from them.
        """
        assert self._file is not None, "open the file first"  # noqa: S101
        self._file.close()
        if self._grows:
            return
        with writing(self._path):
            with write_atomically(self._path) as file:
                if self._suffix == ".npz":
                    self._write_npz(file)
                else:
                    self._write_parquet(file)
            self._rows.unlink()

    def _write_parquet(self, file: BinaryIO) -> None:
        pa, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        schema, rows = arrow_schema(self._columns.value), self._dicts()
        with parquet.ParquetWriter(file, schema) as writer:
            while chunk := list(itertools.islice(rows, 1000)):
                for row in chunk:  # file names need not be UTF-8, Arrow's strings are
                    row.update({key: printable(row[key]) for key in ("source", "error") if key in row})
                writer.write_table(pa.Table.from_pylist(chunk, schema))

    def _write_npz(self, file: BinaryIO) -> None:
        """Write ``embeddings``, float32 (N, width), NaN where there is an error, ``sources`` and ``errors``."""
        import numpy as np

        texts = [(row["source"], row.get("error", "")) for row in self._dicts()]
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(texts), self._columns.width)}
        missing = np.full(self._columns.width, np.nan, "<f4")
        with zipfile.ZipFile(file, "w") as archive:
            with archive.open("embeddings.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_2_0(entry, header)
                for row in self._dicts():
                    entry.write(row.get("embedding", missing).tobytes())
            for position, name in enumerate(("sources", "errors")):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.array([text[position] for text in texts], np.str_))

    def _dicts(self) -> Iterator[dict[str, Any]]:
        import numpy as np

        for line in _complete_rows(self._rows, quoted=False):
            row: dict[str, Any] = json.loads(line)
            if isinstance(row.get("embedding"), str):
                row["embedding"] = np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
            yield row

    def _sources(self) -> Iterator[str]:
        import csv

        if not self._rows.exists():
            return
        for number, content in enumerate(_complete_rows(self._rows, quoted=self._csv)):
            line = content.decode("utf-8", "surrogateescape").removesuffix("\n")
            try:
                if not self._csv:
                    row = json.loads(line)
                    row["error" if "error" in row else self._columns.value]
                    yield str(row["source"])
                elif number:
                    yield next(csv.reader([line]))[0]
                elif line != self._columns.csv_header():
                    raise ValueError
            except (ValueError, LookupError, TypeError, StopIteration, csv.Error):
                raise ValueError(f"{self._name}: cannot be resumed: {line[:50]!r} is no row of this command") from None


def _complete_rows(path: Path, quoted: bool) -> Iterator[bytes]:
    """Iterate over the rows that end with a line break; in CSV files, line breaks within quotes end no row."""
    with path.open("rb") as file:
        row = b""
        for line in file:
            row += line
            if line.endswith(b"\n") and not (quoted and row.count(b'"') % 2):
                yield row
                row = b""
