"""Run `predict` and `extract` over many images into a file: in one process, or on the ranks of torchrun."""

from __future__ import annotations

import argparse
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..images.batches import expand
from ..inference.jobs import Columns, RowFile
from ..utils.devices import usable_device
from ..utils.errors import OutputError
from ..utils.progress import progress_bar
from ..utils.text import printable
from ..utils.validation import positive
from .arguments import SOME_FAILED, ranks_of_torchrun, status_of_images
from .rows import list_paths

if TYPE_CHECKING:
    import torch

    from ..images.batches import Item
    from ..inference.results import Embedding, ImageResult
    from ..utils.distributed import Ranks

Stream = Callable[["Iterable[str | Item]"], "Iterator[ImageResult | Embedding]"]
"""Images -> one result per image, in order."""


def add_job_arguments(parser: argparse.ArgumentParser, kinds: str, *, required: bool) -> None:
    """Add ``--batch-size``, ``--output`` and ``--resume``."""
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="images at once (default: 32)")
    parser.add_argument("--output", required=required, metavar="FILE", help=f"write one row per image: {kinds}")
    parser.add_argument("--resume", action="store_true", help="continue FILE: skip the images that it has")
    parser.add_argument(
        "--on", metavar="ray[=ADDRESS]", help="run on a Ray cluster, or on this machine; --output is a new folder"
    )
    parser.add_argument("--column", metavar="NAME", help="with --on: the column of the images in Parquet files")


def write_rows(arguments: argparse.Namespace, start: Callable[[torch.device], tuple[Stream, Columns]]) -> int:
    """Write one row per image to ``arguments.output`` and return the exit status.

    Under torchrun, rank r of n computes every n-th group of batches, and the first rank writes all rows in order.
    Images that are unusable do not fail such a job, since torchrun would end it as it ends one with a dead rank.

    Args:
        arguments: with paths, device, batch_size, output and resume.
        start: builds the model on a device; returns what computes the results, and the columns of the file.

    Raises:
        OutputError: the file cannot be written, or another rank has ended.
    """
    with _ranks(arguments.device) as ranks:
        paths = ranks.gather(list_paths(arguments) if ranks.first else [])[0]
        stream, columns = start(ranks.device)
        file = RowFile(arguments.output, columns)
        if ranks.first:
            file.open(resume=arguments.resume)
        ranks.gather(None)
        total = failed = shown = 0
        group = arguments.batch_size * (4 if ranks.size > 1 else 1)  # of several: the ranks wait for one another

        def dealt() -> Iterator[Item]:
            for number, item in enumerate(file.missing(paths)):
                if number // group % ranks.size == ranks.rank:
                    yield item

        with counting_bar(paths, enabled=ranks.first) as bar:
            results = iter(stream(dealt()))
            while True:
                mine = list(islice(results, group))
                lines = _gather(ranks, [file.line(result) for result in mine])
                if not lines:
                    break
                if ranks.first:
                    file.add(lines)
                total += len(mine)
                failed += sum(result.error is not None for result in mine)
                bar.update(len(lines) + file.skipped - shown)
                shown = file.skipped
        total, failed = map(sum, zip(*ranks.gather((total, failed)), strict=True))
        if not ranks.first:
            return 0
        file.finish()
        status = status_of_images(failed, total)
        return 0 if ranks.size > 1 and status == SOME_FAILED else status


def write_on_ray(arguments: argparse.Namespace, compute: Callable[[Any], Any]) -> int:
    """Write the results to Parquet files in the folder ``arguments.output`` by Ray Data; return the exit status.

    Args:
        arguments: with paths, on, column, output and resume.
        compute: dataset of images -> dataset of results.

    Raises:
        ValueError: the options do not go together, or Ray cannot be reached.
        OutputError: the folder is not empty, or Ray has ended the job.
    """
    from .. import ray as stages

    engine, _, address = arguments.on.partition("=")
    if engine != "ray" or not arguments.output or arguments.resume or arguments.device != "auto":
        raise ValueError("--on ray[=ADDRESS] requires --output FOLDER, and goes without --resume and --device")
    stages.start(address or None)
    try:
        failed, total = stages.write(
            compute(stages.read(list_paths(arguments), column=arguments.column)), arguments.output
        )
    except (RuntimeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise OutputError(f"the job has ended: {printable(lines[-1] if lines else repr(error))}") from None
    return status_of_images(failed, total)


@contextlib.contextmanager
def _ranks(device: str) -> Iterator[Ranks]:
    from ..utils.distributed import Ranks, connect

    if ranks_of_torchrun() > 1:
        with connect(device) as ranks:
            yield ranks
    else:
        yield Ranks(0, 1, usable_device(device))


def _gather(ranks: Ranks, lines: list[str]) -> list[str]:
    try:
        return [line for each in ranks.gather(lines) for line in each]
    except RuntimeError as error:
        raise OutputError(f"another rank has ended; --resume continues from the rows so far ({error})") from None


def counting_bar(paths: list[str], *, enabled: bool) -> Any:
    """Return a progress bar that shows the total and the time left as soon as the folders have been listed."""
    bar = progress_bar(None, "progress", unit="images", enabled=enabled)

    def count() -> None:
        bar.total = sum(1 for _ in expand(paths, log=False))

    if not bar.disable:
        threading.Thread(target=count, daemon=True).start()
    return bar
