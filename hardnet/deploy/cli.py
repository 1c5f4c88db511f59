"""The verb ``export``, and the arguments of the engines that other verbs take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import ExportError
from ..factory import DEFAULT_TAG, create_model, list_models
from .engines import ENGINES, PRECISIONS
from .exporting import export
from .formats import FORMATS

if TYPE_CHECKING:
    from ..cli import Verbs

_MOST_DIGITS = 6  # of a side in pixels: counting beyond would overflow


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine`` and ``--precision``."""
    engines = ("auto", *ENGINES)
    parser.add_argument("--engine", choices=engines, default="eager", help="what runs the model (default: eager)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the engine (default: fp32)")


def add_export(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("export", help="write a model as a file for other programs, checked against the model")
    parser.add_argument("model", choices=list_models())
    parser.add_argument("--weights", default=DEFAULT_TAG, help="a tag or a file (default: %(default)s)")
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="default: %(default)s")
    parser.add_argument("--output", metavar="FILE", help="default: the model's name and the format's suffix")
    parser.add_argument("--size", type=image_size, metavar="H[xW]", help="pixels (default: the weights' own crop)")
    parser.add_argument(
        "--uint8-input", action="store_true", help="take uint8 RGB values: scaling and normalising go into the file"
    )
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    path = arguments.output or arguments.model + FORMATS[arguments.format].suffix
    model = create_model(arguments.model, weights=arguments.weights)
    try:
        print(export(model, path, format=arguments.format, size=arguments.size, uint8_input=arguments.uint8_input))
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error
    return 0


def image_size(text: str) -> tuple[int, int]:
    """Read H or HxW, in pixels; for argparse.

    Raises:
        ArgumentTypeError: it is something else.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and len(side) <= _MOST_DIGITS for side in sides):
        raise argparse.ArgumentTypeError(f"H or HxW in pixels is wanted, as in 224 or 480x640, got {text!r}")
    return int(sides[0]), int(sides[-1])
