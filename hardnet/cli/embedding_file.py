"""Embeddings on their way to a file, .npz or .csv, that is there whole or not at all."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from ..utils.files import create_part, hidden_prefix, remove_orphans
from ..utils.text import printable


class EmbeddingFile:
    """A file of embeddings that appears only when it is complete; a context manager.

    ``.npz`` holds ``embeddings``, float32 (N, num_features), and ``sources``, N strings; it needs NumPy. ``.csv`` has
    the columns source, 0, 1, ... with nine digits, from which the float32 values can be had back exactly.

    Args:
        path: where the file is to be; one that is there already is replaced.
        num_features: width of the rows.

    Raises:
        ValueError: another extension, or the file cannot be written; what was there before is unharmed.
        ImportError: NumPy is missing.
    """

    def __init__(self, path: str | os.PathLike[str], num_features: int) -> None:
        self.path = Path(path)
        self.rows = 0
        formats: dict[str, type[_Npz] | type[_Csv]] = {".npz": _Npz, ".csv": _Csv}
        if self.path.suffix.lower() not in formats:
            raise ValueError(f"{printable(str(path))}: embeddings are written as .npz or .csv")
        if self.path.is_dir():
            raise ValueError(f"{printable(str(path))}: is a folder")
        with self._failing_clearly():
            remove_orphans(self.path.parent, hidden_prefix(self.path))
            self._temporary, self._file = create_part(self.path.parent, hidden_prefix(self.path))
        try:
            with self._failing_clearly():
                self._format = formats[self.path.suffix.lower()](self._file, num_features, self.path.parent)
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> EmbeddingFile:
        return self

    def add(self, source: str, vector: Tensor) -> None:
        """Write one row: a picture's name and its vector, (num_features,) in float32 on the CPU."""
        with self._failing_clearly():
            self._format.add(source, vector)
            os.utime(self._temporary)  # where there are no locks, the time of its last change shows that we live
        self.rows += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                with self._failing_clearly():
                    self._format.finish()
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    if os.name == "nt":  # Windows renames closed files only
                        self._file.close()
                    self._temporary.replace(self.path)  # still locked, so that it is no orphan in between
        finally:
            self._discard()

    def _discard(self) -> None:
        with suppress(OSError):  # closing flushes, and the disk may be full
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _failing_clearly(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(f"{printable(str(self.path))}: cannot be written: {error.strerror or error}") from None


class _Csv:
    def __init__(self, file: IO[bytes], num_features: int, _: Path) -> None:
        # File names need not be UTF-8; what is not is written as the bytes that it was.
        self._text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._quoting = csv.writer(self._text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        self._writer.writerow(["source", *range(num_features)])

    def add(self, source: str, vector: Tensor) -> None:
        # Left to itself, Python's writer puts no quotes around a carriage return, at which its reader ends the row.
        writer = self._quoting if "\r" in source else self._writer
        writer.writerow([source, *(f"{value:.9g}" for value in vector.tolist())])

    def finish(self) -> None:
        self._text.flush()


class _Npz:
    def __init__(self, file: IO[bytes], num_features: int, folder: Path) -> None:
        self._file, self._num_features = file, num_features
        self._numpy = _import_numpy()
        self._sources: list[str] = []
        # The file begins with the number of rows: they wait here, so that memory holds one at a time.
        self._rows = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (nameless: it goes with the object)

    def add(self, source: str, vector: Tensor) -> None:
        self._rows.write(vector.numpy().tobytes())
        self._sources.append(source)

    def finish(self) -> None:
        np, shape = self._numpy, (len(self._sources), self._num_features)
        self._rows.flush()
        rows = np.memmap(self._rows, np.float32, "r", shape=shape) if self._sources else np.zeros(shape, np.float32)
        np.savez(self._file, embeddings=rows, sources=np.array(self._sources, dtype=np.str_))


def _import_numpy() -> Any:
    try:
        import numpy
    except ModuleNotFoundError:
        raise ImportError('writing .npz takes NumPy: pip install "hardnet[numpy]"; .csv takes nothing') from None
    return numpy
