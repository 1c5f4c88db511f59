"""Lists of input paths; the reports of `predict` and `extract`, and their work on a Ray cluster."""

import argparse
import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import JobSummary, ray
from ..images.batches import Item, expand
from ..images.read import natural_key
from ..utils.errors import OutputError
from ..utils.text import printable, split_lines
from ..weights.catalog import DEFAULT
from .arguments import SOME_FAILED, first_rank, pick, ranks_of_torchrun, say, status_of_images


def list_paths(arguments: argparse.Namespace) -> list[str]:
    """Return the paths of the command line, of the lists, and those that match the patterns."""
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
        paths += split_lines(Path(arguments.from_file).read_bytes())
    if not any(paths):
        raise ValueError("there are no images to work on: give a PATH or --from-file")
    return [path for path in paths if path]


def targets_of(paths: Sequence[str], output: Path) -> Iterator[tuple[Item, Path]]:
    """Iterate over the images below the paths and the files of their maps: .png files, in folders as below the path."""
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


def report(summary: JobSummary) -> int:
    """Print what the file holds on standard error and return the exit status.

    Under torchrun, unusable images do not fail a job, since torchrun would end it as it ends one with a dead rank.
    """
    if not first_rank():
        return 0
    say(summary)
    status = status_of_images(summary.failed, summary.rows, quiet=True)
    return 0 if ranks_of_torchrun() > 1 and status == SOME_FAILED else status


def write_on_ray(arguments: argparse.Namespace, stage: Callable[..., Any], *options: str) -> int:
    """Write what a stage of :mod:`hardnet.ray` makes of the images to Parquet files; return the exit status."""
    engine, _, address = arguments.on.partition("=")
    refused = arguments.resume or arguments.overwrite or arguments.calibration or arguments.device != "auto"
    if engine != "ray" or not arguments.output or refused:
        raise ValueError(
            "--on ray[=ADDRESS] requires --output FOLDER, without --resume, --overwrite, --device and --calibration"
        )
    ray.start(address or None)
    try:
        images = ray.read(list_paths(arguments), column=arguments.column)
        weights = arguments.weights or DEFAULT
        results = stage(images, arguments.model, weights=weights, **pick(arguments, "batch_size", "decode", *options))
        failed, total = ray.write(results, arguments.output)
    except (RuntimeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise OutputError(f"the job has ended: {printable(lines[-1] if lines else repr(error))}") from None
    return status_of_images(failed, total)
