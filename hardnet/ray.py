"""Stages for Ray Data pipelines: read images, classify them, compute embeddings, on one machine or a cluster.

>>> import hardnet.ray, ray
>>> images = hardnet.ray.read(["s3://bucket/shards"])  # doctest: +SKIP
>>> hardnet.ray.predict(images, "hardnet68").write_parquet("s3://bucket/labels")  # doctest: +SKIP

Install hardnet on every machine. Local paths must exist on every machine.
"""

import contextlib
import importlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from .images.batches import Decode, Item
from .images.shards import SHARDS, Row, list_files, read_files, resolve
from .inference.classifier import Classifier, Extractor
from .inference.results import arrow_schema
from .utils.errors import ImageError
from .utils.optional import require
from .utils.text import printable, reason
from .weights.catalog import DEFAULT

logger = logging.getLogger(__name__)

_FILES_PER_TASK, _ROWS = 256, 16  # of a reading task; of a table
_ACTOR_CPUS, _TASK_CPUS = 0.8, 0.1  # what is left of a core reads and writes
_NAMES = ("source", "path", "__key__")


def read(paths: Sequence[str], *, filesystem: Any = None, column: str | None = None) -> Any:
    """Return a dataset of encoded images: the columns ``source``, ``bytes`` and ``error``, one of the latter two null.

    What cannot be read becomes a row with an error: a file, a subfolder, the rest of a shard.

    Args:
        paths: image files, WebDataset shards (.tar, also compressed), Parquet files, and folders of these. ``s3://``,
            ``gs://`` and other addresses are opened by ``pyarrow.fs``. The source of an image in a shard is
            ``SHARD/NAME``, of a row of a Parquet file ``FILE/ROW``.
        filesystem: a ``pyarrow.fs.FileSystem`` for all paths.
        column: the column of the images in Parquet files: bytes, or a struct with bytes. None: the first such column.

    Raises:
        ImportError: Ray is missing.
    """
    _ray()
    data = importlib.import_module("ray.data")
    files = list(list_files(paths, filesystem))
    groups = [[file] for file in files if file[0].lower().endswith(SHARDS)]
    images = [file for file in files if not file[0].lower().endswith(SHARDS)]
    groups += [images[start : start + _FILES_PER_TASK] for start in range(0, len(images), _FILES_PER_TASK)]
    return data.from_arrow([_table(group) for group in groups]).map_batches(
        _read,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=_TASK_CPUS,
        fn_kwargs={"filesystem": filesystem, "column": column},
    )


def _read(table: Any, filesystem: Any, column: str | None) -> Iterator[Any]:
    """Read a block of files; yield tables of a few images, which Ray joins to blocks of bounded size."""
    files = zip(*(values.to_pylist() for values in table.columns), strict=True)
    rows = read_files(files, filesystem, column)
    while group := list(islice(rows, _ROWS)):
        yield _table(group)


def _table(rows: list[Row]) -> Any:
    pa = importlib.import_module("pyarrow")
    schema = pa.schema({"source": pa.string(), "bytes": pa.binary(), "error": pa.string()})
    return pa.table(dict(zip(schema.names, zip(*rows, strict=True), strict=True)), schema=schema)


def predict(
    dataset: Any,
    model: str | None = None,
    *,
    weights: str | None = DEFAULT,
    labels: Sequence[str] | None = None,
    topk: int = 5,
    threshold: float = 0.0,
    engine: str = "auto",
    precision: str = "fp32",
    batch_size: int = 32,
    decode: Decode = "exact",
    column: str = "bytes",
    actors: int | None = None,
) -> Any:
    """Return the dataset with ``predictions``, a list of label, index and probability, and ``error``; lazily.

    One of the two is null. ``dataset`` is a ``ray.data.Dataset``, of :func:`read` or of Ray's own readers. Its
    ``column`` of images, the bytes of files or arrays of uint8, (H, W, 3), is dropped, the others are kept. None
    means as many ``actors`` as the cluster has GPUs, or cores if it has no GPUs. The other arguments are those of
    :class:`hardnet.Classifier` and :meth:`hardnet.Classifier.stream`; each actor loads and verifies the weights once.

    Raises:
        ImportError: Ray is missing.
    """
    options = {"weights": weights, "labels": labels, "engine": engine, "precision": precision, "decode": decode}
    call = {"topk": topk, "threshold": threshold, "batch_size": batch_size}
    return _apply(dataset, actors, column, "predictions", (model, options, call))


def embed(
    dataset: Any,
    model: str | None = None,
    *,
    weights: str | None = DEFAULT,
    batch_size: int = 32,
    decode: Decode = "exact",
    column: str = "bytes",
    actors: int | None = None,
) -> Any:
    """Return the dataset with ``embedding``, a list of float32, and ``error``, of which one is null; see `predict`."""
    options = {"weights": weights, "decode": decode}
    return _apply(dataset, actors, column, "embedding", (model, options, {"batch_size": batch_size}))


class _Stage:
    """An actor: a model that turns a block of images into a block of results."""

    def __init__(
        self, column: str, value: str, model: str | None, options: dict[str, Any], call: dict[str, Any]
    ) -> None:
        logging.getLogger("hardnet.inference").setLevel(logging.ERROR)  # unusable images are rows
        runner: Any = (Classifier if value == "predictions" else Extractor)(model, **options)
        self._column, self._value = column, value
        self._stream, self._call = runner.stream, call

    def __call__(self, table: Any) -> Any:
        pa = importlib.import_module("pyarrow")
        schema = arrow_schema(self._value)
        results = list(self._stream(self._items(table), **self._call))
        table = table.drop_columns([name for name in (self._column, "error") if name in table.column_names])
        errors = [result.error and printable(result.error) for result in results]
        for name, cells in ((self._value, map(self._cell, results)), ("error", errors)):
            table = table.append_column(schema.field(name), pa.array(cells, schema.field(name).type))
        return table

    def _cell(self, result: Any) -> Any:
        if result.error is not None:
            return None
        return result.vector.numpy() if self._value == "embedding" else result.to_dict()["predictions"]

    def _items(self, table: Any) -> Iterator[Item]:
        columns = {name: table[name].to_pylist() for name in (*_NAMES, "error") if name in table.column_names}
        names = next((columns[name] for name in _NAMES if name in columns), ["the image"] * len(table))
        errors = columns.get("error", [None] * len(table))
        for name, content, error in zip(names, table[self._column], errors, strict=True):
            value = content.as_py()
            if error is None and value is None:
                error = f"{name}: there is no image"
            yield Item(str(name), value if error is None else ImageError(error))


def _apply(dataset: Any, actors: int | None, column: str, value: str, model: tuple[Any, ...]) -> Any:
    ray, data = _ray(), importlib.import_module("ray.data")
    start()
    cluster = ray.cluster_resources()
    cores, gpus = int(cluster.get("CPU", 1)), int(cluster.get("GPU", 0))
    size = actors or gpus or cores
    return dataset.map_batches(
        _Stage,
        batch_size=None,  # a block: the runner forms the batches, and decodes ahead of the model
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(size=size),
        num_cpus=max(_ACTOR_CPUS, _ACTOR_CPUS * min(8, cores // size)) if gpus else _ACTOR_CPUS,
        num_gpus=1 if gpus else None,
        fn_constructor_args=(column, value, *model),
        udf_modifying_row_count=False,
    )


def start(address: str | None = None) -> None:
    """Connect to the cluster at ``address``; None starts Ray on this machine. Nothing happens if Ray is running.

    Raises:
        ImportError: Ray is missing.
        ValueError: there is no cluster at the address.
    """
    ray = _ray()
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        host, _, port = (address or "").removeprefix("ray://").rpartition(":")
        if host and port.isdecimal():  # Ray itself tries for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=address or "local", logging_level=logging.WARNING)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise ValueError(f"Ray cannot be reached at {address}: {reason(error)}") from None


def write(results: Any, folder: str) -> tuple[int, int]:
    """Compute the results, write them to Parquet files in an empty folder; return how many have errors, and the total.

    Raises:
        FileExistsError: the folder is not empty.
    """
    data, fs = importlib.import_module("pyarrow.dataset"), importlib.import_module("pyarrow.fs")
    filesystem, inner = resolve(folder)
    if filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True)):
        raise FileExistsError(f"{printable(folder)}: is not empty, results are written to a new folder")
    try:
        results.write_parquet(
            inner, filesystem=filesystem, min_rows_per_file=10_000, ray_remote_args={"num_cpus": _TASK_CPUS}
        )
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # there is no folder yet
            complete = data.dataset(inner, filesystem=filesystem, format="parquet", exclude_invalid_files=True)
            counts = len(complete.files), complete.count_rows()
            logger.warning("interrupted: %s holds %d complete files with %d images", printable(folder), *counts)
        raise
    written = data.dataset(inner, filesystem=filesystem, format="parquet")
    return written.count_rows(filter=data.field("error").is_valid()), written.count_rows()


def _ray() -> Any:
    require("pyarrow", "15.0", extra="ray")
    return require("ray", "2.44", extra="ray")
