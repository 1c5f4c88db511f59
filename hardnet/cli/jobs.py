"""Arguments and lists of input paths of `predict` and `extract`; their work on a Ray cluster."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..images.read import natural_key
from ..utils.errors import OutputError
from ..utils.text import printable, reason, split_lines
from ..utils.validation import positive
from .arguments import SOME_FAILED, first_rank, ranks_of_torchrun, say, status_of_images

if TYPE_CHECKING:
    from ..images.batches import Item
    from ..inference.jobs import JobSummary


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
            paths += split_lines(sys.stdin.buffer.read())
        elif glob.has_magic(path) and not os.path.lexists(path):
            matches = glob.glob(path, recursive=True)  # noqa: PTH207 (absolute patterns, too)
            paths += sorted(matches, key=lambda match: list(map(natural_key, map(Path, Path(match).parts)))) or [path]
        else:
            paths.append(path)
    if arguments.from_file:
        try:
            paths += split_lines(Path(arguments.from_file).read_bytes())
        except OSError as error:
            raise ValueError(f"{printable(arguments.from_file)}: cannot be read: {reason(error)}") from None
    if not any(paths):
        raise ValueError("there are no images to work on: give a PATH or --from-file")
    return [path for path in paths if path]


def targets_of(paths: Sequence[str], output: Path) -> Iterator[tuple[Item, Path]]:
    """Iterate over the images below the paths and the files of their maps: .png files, in folders as below the path.

    Raises:
        ValueError: the map would replace an image.
    """
    from ..images.batches import expand

    targets = set[Path]()
    for path in paths:
        for item in expand(path):
            name = Path(item.source).relative_to(path) if Path(path).is_dir() else Path(Path(path).name)
            target = output / name.with_suffix(".png")
            if target in targets:  # a.jpg and a.png
                target = target.with_name(f"{name.name}.png")
            if target.resolve() == Path(item.source).resolve():
                raise ValueError(f"{printable(str(target))} is one of the images: --output requires another folder")
            targets.add(target)
            yield item, target


def add_job_arguments(parser: argparse.ArgumentParser, kinds: str, *, required: bool) -> None:
    """Add ``--batch-size``, ``--output``, ``--resume``, ``--overwrite`` and the options of Ray."""
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="images at once (default: 32)")
    parser.add_argument("--output", required=required, metavar="FILE", help=f"write one row per image: {kinds}")
    parser.add_argument("--resume", action="store_true", help="continue FILE: skip the images that it has")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument(
        "--on", metavar="ray[=ADDRESS]", help="run on a Ray cluster, or on this machine; --output is a new folder"
    )
    parser.add_argument("--column", metavar="NAME", help="with --on: the column of the images in Parquet files")


def file_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return ``output``, ``resume`` and ``overwrite``."""
    return {name: getattr(arguments, name) for name in ("output", "resume", "overwrite")}


def report(summary: JobSummary) -> int:
    """Print what the file holds on standard error and return the exit status.

    Under torchrun, unusable images do not fail a job, since torchrun would end it as it ends one with a dead rank.
    """
    if not first_rank():
        return 0
    say(summary)
    status = status_of_images(summary.failed, summary.rows, quiet=True)
    return 0 if ranks_of_torchrun() > 1 and status == SOME_FAILED else status


def write_on_ray(arguments: argparse.Namespace, compute: Callable[[Any], Any]) -> int:
    """Write the results to Parquet files in the folder ``arguments.output`` by Ray Data; return the exit status.

    Args:
        arguments: with paths, on, column, output, resume and overwrite.
        compute: dataset of images -> dataset of results.

    Raises:
        ValueError: the options do not go together, or Ray cannot be reached.
        OutputError: the folder is not empty, or Ray has ended the job.
    """
    from .. import ray as stages

    engine, _, address = arguments.on.partition("=")
    device, resume, overwrite = arguments.device, arguments.resume, arguments.overwrite
    if engine != "ray" or not arguments.output or resume or overwrite or device != "auto":
        raise ValueError("--on ray[=ADDRESS] requires --output FOLDER, and goes with neither --resume nor --device")
    stages.start(address or None)
    try:
        failed, total = stages.write(
            compute(stages.read(list_paths(arguments), column=arguments.column)), arguments.output
        )
    except (RuntimeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise OutputError(f"the job has ended: {printable(lines[-1] if lines else repr(error))}") from None
    return status_of_images(failed, total)
