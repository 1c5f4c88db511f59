"""Lists of input paths, and an output file with one row per image that an interrupted run can continue."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from pathlib import Path

from ..images.read import natural_key
from ..utils.text import printable


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
            found = glob.glob(path, recursive=True)  # noqa: PTH207 (absolute patterns, too)
            paths += sorted(found, key=lambda one: [natural_key(Path(part)) for part in Path(one).parts]) or [path]
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
