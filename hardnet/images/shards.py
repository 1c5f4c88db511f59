"""Read encoded images from files, WebDataset shards and Parquet files, here or in an object store."""

import importlib
import lzma
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
from ..utils.text import escape_bytes, printable, reason
from .read import MAX_PIXELS, find_images, image_extensions, natural_key, require_images

SHARDS = (".parquet", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""Extensions of files that hold several images."""
MAX_BYTES = 4 * MAX_PIXELS
"""The largest encoded image that is read, in bytes: a bitmap with the most pixels and four channels."""
Row: TypeAlias = "tuple[str, bytes | None, str | None]"
"""Name, content (of a listed file: location) and error; one of the latter two is None."""
_READERS = 16  # threads that read files


def resolve(path: str, filesystem: Any = None) -> tuple[Any, str]:
    """Return the pyarrow file system of a path or address, if none is given, and the path in it."""
    if filesystem is not None:
        return filesystem, path
    fs = importlib.import_module("pyarrow.fs")
    result: tuple[Any, str] = fs.FileSystem.from_uri(path if "://" in path else str(Path(path).absolute()))
    return result


def list_files(paths: Iterable[str], filesystem: Any = None) -> Iterator[Row]:
    """Iterate over the files of paths, addresses and folders; what cannot be listed has an error."""
    for path in paths:
        left_out = Counter[str]()
        try:
            for name, location, error in require_images(path, _list(path, filesystem, left_out), left_out):
                yield escape_bytes(name), location, error
        except ImageError as error:
            yield escape_bytes(path), None, str(error)
        except (OSError, ValueError) as error:
            yield escape_bytes(path), None, f"{printable(path)}: cannot be listed: {reason(error)}"


def _list(path: str, filesystem: Any, left_out: Counter[str]) -> Iterator[Row]:
    if filesystem is None and "://" not in path:
        images = find_images(path, also=SHARDS, left_out=left_out) if Path(path).is_dir() else [(Path(path), None)]
        for file, error in images:
            yield str(file), os.fsencode(file.absolute()), None if error is None else str(error)
        return
    fs = importlib.import_module("pyarrow.fs")
    files, inner = resolve(path, filesystem)
    if files.get_file_info(inner).type != fs.FileType.Directory:
        yield path, path.encode(), None
        return
    extensions = image_extensions()
    entries = files.get_file_info(fs.FileSelector(inner, recursive=True))
    names = [PurePosixPath(entry.path.removeprefix(inner).lstrip("/")) for entry in entries if entry.is_file]
    for name in sorted(names, key=lambda name: [natural_key(Path(part)) for part in name.parts]):
        fits = name.suffix.lower() in extensions or name.name.lower().endswith(SHARDS)
        if any(part.startswith(".") for part in name.parts):
            left_out["hidden images"] += fits
        elif fits:
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
            path = os.fsdecode(location)
            if filesystem is None and "://" not in path:
                opened: Any = open_regular(path)
            else:
                files, inner = resolve(path, filesystem)
                opened = files.open_input_file(inner)
            if name.lower().endswith(".parquet"):
                return _cells(name, opened, column)
            if name.lower().endswith(SHARDS):
                return _members(name, opened)
            with opened:
                size = opened.seek(0, os.SEEK_END)
                opened.seek(0)
                return [(name, opened.read(), None) if size <= MAX_BYTES else _too_large(name, size)]
        except (OSError, ValueError) as error:
            return [(name, None, f"{printable(name)}: cannot be read: {reason(error)}")]

    with ThreadPoolExecutor(_READERS) as pool:
        while group := list(islice(files, 4 * _READERS)):
            for rows in pool.map(read_file, group):
                yield from rows


def _too_large(name: str, size: int) -> Row:
    return name, None, f"{printable(name)}: is too large: {size:,} bytes, the limit is {MAX_BYTES:,}"


def _members(name: str, file: Any) -> Iterator[Row]:
    count, extensions = 0, image_extensions()
    try:
        with file, tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                path, source = PurePosixPath(member.name), f"{name}/{escape_bytes(member.name)}"
                content = archive.extractfile(member) if member.isreg() else None  # not a link, device or folder
                if content is None or path.suffix.lower() not in extensions or path.name.startswith("."):
                    continue
                yield (source, content.read(), None) if member.size <= MAX_BYTES else _too_large(source, member.size)
                count += 1
            file.seek(257)
            if file.read(5) == b"ustar":  # not compressed. tarfile takes a damaged header for the end
                file.seek(archive.offset)
                if file.read(512) != bytes(512):
                    raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, OSError, EOFError, ValueError, MemoryError, zlib.error, lzma.LZMAError) as error:
        yield name, None, f"{printable(name)}: is damaged or truncated after {count} images: {reason(error)}"


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
                    source, size = f"{name}/{number}", len(value.as_buffer() or b"")
                    missing = None if value.is_valid else f"{printable(source)}: there is no image"
                    yield (source, value.as_py(), missing) if size <= MAX_BYTES else _too_large(source, size)
                    number += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        yield name, None, f"{printable(name)}: cannot be read after {number} rows: {reason(error)}"


def _holds_bytes(kind: Any) -> bool:
    types = importlib.import_module("pyarrow").types
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))
