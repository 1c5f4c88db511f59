"""Write the results of many images to a file, one row per image, which an interrupted job continues."""

import base64
import contextlib
import copy
import importlib
import io
import json
import mmap
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from ..images.batches import Item, expand
from ..utils.distributed import connect
from ..utils.files import locked, write_atomically, writing
from ..utils.optional import require
from ..utils.progress import progress_bar
from ..utils.text import csv_row, escape_bytes, printable, reason
from ..utils.version import __version__
from .classifier import Classifier, Extractor
from .results import Embedding, ImageResult, arrow_schema

Paths: TypeAlias = "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"


@dataclass(frozen=True)
class JobSummary:
    """A complete output file: its rows, with those of earlier parts, and how many of them have an error."""

    output: str
    rows: int
    failed: int
    engine: str
    precision: str

    def __str__(self) -> str:
        name = printable(self.output)
        return f"{name}: rows: {self.rows}, errors: {self.failed}, engine: {self.engine} {self.precision}"


def predict_to_file(
    classifier: Classifier,
    images: Paths,
    output: str | os.PathLike[str],
    *,
    topk: int = 5,
    threshold: float = 0.0,
    batch_size: int = 32,
    resume: bool = False,
    overwrite: bool = False,
) -> JobSummary:
    """Classify images and write one row per image, in their order, to a file that an interrupted job can continue.

    An unreadable image has a row with its error. On the ranks of torchrun, all of which call this function, the images
    are divided among the ranks, and the first rank writes the file. ``OUTPUT.run.json`` beside the file records what
    decides its rows: the model, its weights and labels, the options, the engine and the version of this library.

    Args:
        classifier: its engine, if "auto", is chosen from the number of images; a resumed job keeps its first engine.
        images: paths of images and folders.
        output: a .jsonl, .csv or .parquet file. The rows of .parquet files are kept in ``OUTPUT.part`` until the file
            is complete. In .csv files, a text that a spreadsheet would take for a formula begins with an apostrophe.
            Devices and FIFOs are written, but cannot be resumed.
        topk: the number of predictions per image, at most that of the classes.
        threshold: the least probability of a prediction, from 0 to 1.
        batch_size: the most images that the model gets at once.
        resume: continue the file of an interrupted job, or add images to a .jsonl or .csv file. Everything is checked
            before the file is changed; an incomplete last row is replaced.
        overwrite: replace an existing file.

    Raises:
        ValueError: the file exists, is used by another process, or has rows of another run or of another program; an
            option is out of range; or another format.
        TypeError: ``images`` are not paths.
        OutputError: the file cannot be written, or another rank has ended.
        ImportError: pyarrow is missing for .parquet.
    """
    file = RowFile(output, resume=resume, overwrite=overwrite)
    return _write_rows(classifier, file, images, batch_size, {"topk": topk, "threshold": threshold})


def extract_to_file(
    extractor: Extractor,
    images: Paths,
    output: str | os.PathLike[str],
    *,
    batch_size: int = 32,
    resume: bool = False,
    overwrite: bool = False,
) -> JobSummary:
    """Write the embeddings of images to a .jsonl, .csv, .parquet or .npz file; see :func:`hardnet.predict_to_file`.

    A .npz file has ``sources``, ``embeddings`` of shape (N, num_features), float32 with NaN where there is an error,
    ``errors`` and ``run``.
    """
    file = RowFile(output, extractor.num_features, resume=resume, overwrite=overwrite)
    return _write_rows(extractor, file, images, batch_size, {})


def _write_rows(
    runner: Classifier | Extractor, file: "RowFile", images: Paths, batch_size: int, options: dict[str, Any]
) -> JobSummary:
    runner = copy.copy(runner)  # whose engine is fixed
    stream: Any = partial(runner.stream, batch_size=batch_size, **options)
    stream(())  # checks the options
    run: dict[str, Any] = {"hardnet": __version__} | runner.describe() | options
    with connect(runner.device) as ranks, contextlib.ExitStack() as stack:
        group = batch_size * (4 if ranks.size > 1 else 1)  # of several: the ranks wait for one another
        work: list[tuple[list[Item], str | None]] = []
        if ranks.first:
            stack.enter_context(file.held())
            file.check(run)
            items = list(expand([images] if isinstance(images, (str, os.PathLike)) else images))
            remaining = file.missing(items, batch_size)
            groups = [remaining[start : start + group] for start in range(0, len(remaining), group)]
            work = [(list(chain(*groups[r :: ranks.size])), file.previous.get("engine")) for r in range(ranks.size)]
        share, engine = ranks.scatter(work)
        run["engine"] = runner.fix_engine(len(share), engine)
        if ranks.first:
            file.start(run)
            bar = stack.enter_context(progress_bar(len(items), "progress", unit="images", initial=file.rows))
        results = stream(share)
        while True:
            share_rows = [(file.line(result), result.error is not None) for result in islice(results, group)]
            rows = list(chain(*ranks.gather(share_rows)))
            if not rows:
                break
            if ranks.first:
                bar.update(file.add(rows))
        summary = None
        if ranks.first:
            file.finish(run)
            summary = JobSummary(file.output, file.rows, file.failed, run["engine"], run["precision"])
        return cast(JobSummary, ranks.gather(summary)[0])


_COLUMNS = ("label", "index", "probability", "predictions")  # of a .csv file, between the source and the error
_FORMULA = r"(?='*[=+\-@\t\r])"


def csv_header(width: int = 0) -> str:
    """Return the first line of a .csv file of predictions, or of vectors with ``width`` numbers."""
    return csv_row("source", *(range(width) if width else _COLUMNS), "error")


def csv_line(result: ImageResult | Embedding, width: int = 0) -> str:
    """Return the line of an image in a .csv file."""
    cells: Sequence[object] = ("",) * (width or len(_COLUMNS))
    if isinstance(result, Embedding):
        if result.vector is not None:  # nine digits, from which float32 values are restored exactly
            cells = [f"{value:.9g}" for value in result.vector.tolist()]
    elif result.error is None:
        top = [(_no_formula(p.label), p.index, f"{p.probability:.6f}") for p in result.predictions[:1]]
        cells = (*(top[0] if top else cells[:3]), json.dumps(result.to_dict()["predictions"]))
    return csv_row(_no_formula(result.source), *cells, _no_formula(result.error or ""))


def _no_formula(text: str) -> str:
    """Begin a text that a spreadsheet would take for a formula with an apostrophe."""
    return re.sub(f"^{_FORMULA}", "'", text)


class RowFile:
    """An output file with one row per image, held for one process: .jsonl, .csv, .parquet, or .npz for vectors.

    A .jsonl or .csv file grows row by row. The rows of a .parquet or .npz file are kept in a file with ".part" added to
    its name until :meth:`finish` writes the file itself. Beside the rows, a file with ".run.json" added to their name
    says what computed them. ``width`` is the length of the vectors; 0 for predictions.
    """

    def __init__(
        self, output: str | os.PathLike[str], width: int = 0, *, resume: bool = False, overwrite: bool = False
    ) -> None:
        self.output = os.fspath(output)
        self._name, self._width, self._resume, self._overwrite = printable(self.output), width, resume, overwrite
        self._value = "embedding" if width else "predictions"  # column of the results in .jsonl and .parquet files
        self._suffix = Path(output).suffix.lower()
        suffixes = [".jsonl", ".csv", ".parquet", *([".npz"] if width else [])]
        self._path = Path(os.path.realpath(output))  # a link stays
        if self._suffix not in suffixes:
            raise ValueError(f"{self._name}: results are written to files of the kinds {', '.join(suffixes)}")
        if self._suffix == ".parquet":
            require("pyarrow", "15.0", extra="parquet")
        self._csv, self._grows = self._suffix == ".csv", self._suffix in (".jsonl", ".csv")
        self._regular = self._path.is_file() or not self._path.exists()
        if not self._regular and (resume or not self._grows):
            raise ValueError(f"{self._name}: only regular files can be resumed, or be .parquet or .npz files")
        if resume and overwrite:
            raise ValueError("resume continues a file and overwrite replaces it: choose one of them")
        self._rows = self._path if self._grows else self._path.with_name(f"{self._path.name}.part")
        self._record = self._rows.with_name(f"{self._rows.name}.run.json")
        self._file: BinaryIO = io.BytesIO()  # until :meth:`start`
        self._end = self._repeated = 0
        self.previous: dict[str, Any] = {}
        """The run of the rows that are there."""
        self.rows = self.failed = 0
        """Rows in the file, and how many of them have an error."""

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the file for this process, and check whether there are rows already."""
        with contextlib.ExitStack() as stack:
            if self._regular:
                with writing(self._name):
                    stack.enter_context(locked(self._path))
                self._open_previous()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # reported when it was written
                    self._file.close()

    def _open_previous(self) -> None:
        begun, complete = _has_bytes(self._rows), _has_bytes(self._path)
        if not self._overwrite and not self._resume and (begun or complete):
            raise ValueError(f"{self._name}: has rows already; resume continues them, overwrite replaces them")
        if self._resume and complete and not begun:
            raise ValueError(f"{self._name}: is complete; resume adds images to .jsonl and .csv files only")
        if self._resume and begun:
            try:
                self.previous = dict(json.loads(self._record.read_bytes()))
            except (OSError, ValueError, TypeError) as error:
                record = f"the record of its run, {printable(self._record.name)}"
                raise ValueError(f"{self._name}: cannot be resumed without {record}: {reason(error)}") from None

    def check(self, run: dict[str, Any]) -> None:
        """Check that the rows that are there are of this run; the ValueError names what differs."""
        pairs = [(key, self.previous.get(key), value) for key, value in run.items() if self.previous]
        differences = [
            f"other {key}" if isinstance(value, list) else f"{key} {before!s:.99}, now {value!s:.99}"
            for key, before, value in pairs
            if before != value
        ]
        if differences:
            advice = "Use the same options, or overwrite it"
            raise ValueError(f"{self._name}: cannot be resumed: its rows have {'; '.join(differences)}. {advice}")

    def missing(self, items: list[Item], batch_size: int) -> list[Item]:
        """Check the rows that are there, and return the images that have none, in order.

        If the rows are the first images and end within a batch, its images are computed again, since engines may round
        differently in batches of other sizes; :meth:`add` leaves them out. A row that is damaged or not of this verb is
        a ValueError.
        """
        counts, remaining = Counter[str](), []
        for source, failed in self._read() if self.previous else ():
            self.rows += 1
            self.failed += failed
            counts[source] += 1
        for item in items:
            if counts[item.source]:
                counts[item.source] -= 1
            else:
                remaining.append(item)
        if remaining and remaining == items[self.rows :]:
            self._repeated = self.rows % batch_size
            remaining = items[self.rows - self._repeated :]
        return remaining

    def start(self, run: dict[str, Any]) -> None:
        """Open the file for :meth:`add`, with the rows that are there, except an incomplete last one."""
        self.check(run)
        with writing(self._name):
            self._file = self._rows.open("r+b" if self.previous else "wb")
            if self._regular:
                self._file.truncate(self._end)
                self._file.seek(self._end)
                with write_atomically(self._record) as record:
                    record.write(json.dumps(run, indent=1).encode() + b"\n")
            if self._csv and not self._end:
                self._file.write(f"{csv_header(self._width)}\n".encode())

    def line(self, result: Any) -> str:
        """Return the row of an image, for :meth:`add`."""
        if self._csv:
            return csv_line(result, self._width)
        if self._grows or not self._width or result.error is not None:
            return json.dumps(result.to_dict())
        packed = base64.b64encode(result.vector.numpy().astype("<f4").tobytes()).decode()
        return json.dumps({"source": result.source, "embedding": packed})

    def add(self, rows: list[tuple[str, bool]]) -> int:
        """Append rows, each a line and whether it has an error, and return how many were new."""
        rows, self._repeated = rows[self._repeated :], 0
        content = "".join(f"{line}\n" for line, _ in rows).encode("utf-8", "surrogateescape")
        with writing(self._name):
            self._file.write(content)  # at once: whole batches
            self._file.flush()
        self.rows += len(rows)
        self.failed += sum(failed for _, failed in rows)
        return len(rows)

    def finish(self, run: dict[str, Any]) -> None:
        """Close the file; write the .parquet or .npz file from the rows, which remain if that fails."""
        with writing(self._name):
            self._file.close()
            if not self._grows:
                with write_atomically(self._path) as file:
                    (self._write_npz if self._suffix == ".npz" else self._write_parquet)(file, json.dumps(run))
                self._rows.unlink()
                self._record.unlink()

    def _write_parquet(self, file: BinaryIO, run: str) -> None:
        """Write the rows, with the run as metadata; "source_bytes" has the names that are not UTF-8, if any."""
        pa, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        schema = arrow_schema(self._value).with_metadata({"hardnet": run})
        if any(escape_bytes(row["source"]) != row["source"] for row in self._dicts()):
            schema = schema.append(pa.field("source_bytes", pa.binary()))
        rows = self._dicts()
        with parquet.ParquetWriter(file, schema) as writer:
            while chunk := list(islice(rows, 1000)):
                for row in chunk:
                    name = row["source"]
                    row["source"] = escape_bytes(name)
                    row["source_bytes"] = None if row["source"] == name else os.fsencode(name)
                writer.write_table(pa.Table.from_pylist(chunk, schema))

    def _write_npz(self, file: BinaryIO, run: str) -> None:
        """Write ``embeddings``, float32 (N, width), NaN for errors; and ``sources``, ``errors``, ``run``."""
        import numpy as np

        texts = [(row["source"], row.get("error", "")) for row in self._dicts()]
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(texts), self._width)}
        blank = np.full(self._width, np.nan, "<f4")
        with zipfile.ZipFile(file, "w") as archive:
            with archive.open("embeddings.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_2_0(entry, header)
                for row in self._dicts():
                    entry.write(row.get("embedding", blank).tobytes())
            sources, errors = zip(*texts, strict=True) if texts else ((), ())
            for name, values in (("sources", sources), ("errors", errors), ("run", run)):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.array(values, np.str_))

    def _dicts(self) -> Iterator[dict[str, Any]]:
        import numpy as np

        with self._rows.open("rb") as file:
            for line in file:
                row: dict[str, Any] = json.loads(line)
                if isinstance(row.get("embedding"), str):
                    row["embedding"] = np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
                yield row

    def _read(self) -> Iterator[tuple[str, bool]]:
        """Iterate over the complete rows, whose end is then in ``_end``: the source, and whether there is an error."""
        cell = rb'(?:"[^"]*(?:""[^"]*)*"|[^",\r\n]*)'
        cells = rb"(%b)(?:,%b){%d},(%b)\n" % (cell, cell, self._width or len(_COLUMNS), cell)
        pattern = re.compile(cells if self._csv else rb".*\n")
        with self._rows.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            while match := pattern.match(content, self._end):
                try:
                    row = self._parse(match)
                except (ValueError, LookupError, TypeError):
                    break
                if row is not None:
                    yield row
                self._end = match.end()
            *lines, _ = content[self._end :].split(b"\n")
            # A row that is not complete has no line break, or one within quotes. It does not hold a complete row: that
            # is swallowed by a damaged one, whose quotes are odd as well.
            quotes = accumulate(line.count(b'"') for line in lines) if self._csv else [0] * len(lines)
            swallowed = any(pattern.fullmatch(line + b"\n") for line in lines[1:])
            if swallowed or any(count % 2 == 0 for count in quotes):
                number, text = content[: self._end].count(b"\n") + 1, lines[0][:50].decode(errors="replace")
                raise ValueError(f"{self._name}: cannot be resumed: line {number} is no row of this command: {text!r}")

    def _parse(self, match: re.Match[bytes]) -> tuple[str, bool] | None:
        """Return the source of a row, and whether there is an error; None for the header of a .csv file."""
        if not self._csv:
            content = json.loads(match[0])
            if ("error" in content) == (self._value in content):
                raise ValueError
            return str(content["source"]), "error" in content
        is_header = match[0].decode(errors="replace") == f"{csv_header(self._width)}\n"
        if is_header != (match.start() == 0):
            raise ValueError
        source = match[1].decode("utf-8", "surrogateescape")
        if source.startswith('"'):
            source = source[1:-1].replace('""', '"')
        return None if is_header else (re.sub(f"^'{_FORMULA}", "", source), bool(match[2]))


def _has_bytes(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
