"""Read encoded images from files, WebDataset shards and Parquet files, here or in an object store."""

from __future__ import annotations

import importlib
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from ..utils.errors import ImageError
from ..utils.files import open_regular
from ..utils.text import printable, reason
from .read import find_images, image_extensions, log_left_out, natural_key, no_images

SHARDS = (".tar", ".parquet")
"""Extensions of files that hold several images."""
Row: TypeAlias = "tuple[str, bytes | None, str | None]"
"""Name, content (of a listed file: location) and error; one of the latter two is None."""
_READERS = 16
"""Threads that read files."""


def resolve(path: str) -> tuple[Any, str]:
    """Return the pyarrow file system of a path or address, and the path in it."""
    fs = importlib.import_module("pyarrow.fs")
    found: tuple[Any, str] = fs.FileSystem.from_uri(path if "://" in path else str(Path(path).absolute()))
    return found


def list_files(paths: Iterable[str], filesystem: Any = None) -> Iterator[Row]:
    """Iterate over the files of paths, addresses and folders; what cannot be listed has an error."""
    for path in paths:
        empty, left_out = True, Counter[str]()
        try:
            for name, location, error in _list(path, filesystem, left_out):
                empty = False
                yield printable(name), location, error
            failure = str(no_images(path, left_out))
            if not empty:
                log_left_out(path, left_out)
        except (ImageError, OSError, ValueError) as error:
            failure = f"{printable(path)}: cannot be listed: {reason(error)}"
        if empty:
            yield printable(path), None, failure


def _list(path: str, filesystem: Any, left_out: Counter[str]) -> Iterator[Row]:
    fs = importlib.import_module("pyarrow.fs")
    if filesystem is None and "://" not in path:
        images = find_images(path, also=SHARDS, left_out=left_out) if Path(path).is_dir() else [(Path(path), None)]
        for file, error in images:
            yield str(file), os.fsencode(file.absolute()), None if error is None else str(error)
        return
    files, inner = (filesystem, path) if filesystem is not None else resolve(path)
    if files.get_file_info(inner).type != fs.FileType.Directory:
        yield path, path.encode(), None
        return
    extensions = image_extensions().union(SHARDS)
    entries = files.get_file_info(fs.FileSelector(inner, recursive=True))
    names = [PurePosixPath(entry.path.removeprefix(inner).lstrip("/")) for entry in entries if entry.is_file]
    for name in sorted(names, key=lambda name: [natural_key(Path(part)) for part in name.parts]):
        if any(part.startswith(".") for part in name.parts):
            left_out["hidden images"] += name.suffix.lower() in extensions
        elif name.suffix.lower() in extensions:
            location = f"{path.rstrip('/')}/{name}"
            yield location, location.encode(), None
        else:
            left_out[name.suffix.lower()] += 1


def read_files(files: Iterator[Row], filesystem: Any, column: str | None) -> Iterator[Row]:
    """Iterate over the encoded images of files that `list_files` found; a few are read ahead, by threads."""

    def read_file(file: Row) -> Iterable[Row]:
        name, location, failure = file
        if location is None or failure is not None:
            return [(name, None, failure)]
        try:
            opened = _open(os.fsdecode(location), filesystem)
            if name.lower().endswith(".tar"):
                return _members(name, opened)
            if name.lower().endswith(".parquet"):
                return _cells(name, opened, column)
            with opened:
                return [(name, opened.read(), None)]
        except (OSError, ValueError) as error:
            return [(name, None, f"{name}: cannot be read: {reason(error)}")]

    with ThreadPoolExecutor(_READERS) as pool:
        while some := list(islice(files, 4 * _READERS)):
            for rows in pool.map(read_file, some):
                yield from rows


def _open(path: str, filesystem: Any) -> Any:
    if filesystem is None and "://" not in path:
        return open_regular(path)
    files, inner = (filesystem, path) if filesystem is not None else resolve(path)
    return files.open_input_file(inner)


def _members(name: str, file: Any) -> Iterator[Row]:
    count, extensions = 0, image_extensions()
    try:
        with file, tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                content = archive.extractfile(member)
                if content is not None and path.suffix.lower() in extensions and not path.name.startswith("."):
                    yield f"{name}/{printable(member.name)}", content.read(), None
                    count += 1
            file.seek(257)
            if file.read(5) == b"ustar":  # not compressed. tarfile takes a damaged header for the end
                file.seek(archive.offset)
                if file.read(512) != bytes(512):
                    raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        yield name, None, f"{name}: is damaged or truncated after {count} images: {reason(error)}"


def _cells(name: str, file: Any, column: str | None) -> Iterator[Row]:
    pa, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    number = 0
    try:
        with file, parquet.ParquetFile(file) as table:
            fields = [
                field for field in table.schema_arrow if _holds_bytes(field.type) and column in (None, field.name)
            ]
            if not fields:
                raise ValueError("there is no such column of bytes" if column else "there is no column of bytes")
            for batch in table.iter_batches(batch_size=64, columns=[fields[0].name]):
                values = batch.column(0)
                for value in values.field("bytes") if pa.types.is_struct(values.type) else values:
                    missing = None if value.is_valid else f"{name}/{number}: there is no image"
                    yield f"{name}/{number}", value.as_py(), missing
                    number += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        yield name, None, f"{name}: cannot be read after {number} rows: {reason(error)}"


def _holds_bytes(kind: Any) -> bool:
    types = importlib.import_module("pyarrow").types
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))
