"""The verb ``export``: write a model to a file for other programs."""

from __future__ import annotations

import argparse

from ..engines import FORMATS, export
from ..factory import create_model
from ..utils.files import writing
from ..utils.text import printable
from ..utils.validation import image_size
from ..weights.catalog import list_models
from .arguments import Verbs, add_weights, load_model, say
from .output import show


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("export", help="write a model to a file for other programs")
    parser.add_argument("model", nargs="?", choices=list_models(), help="architecture (default: that of the weights)")
    add_weights(parser)
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="default: %(default)s")
    parser.add_argument("--output", metavar="FILE", help="default: the model's name and the format's suffix")
    parser.add_argument("--size", type=image_size, metavar="H[xW]", help="pixels (default: the weights' own crop)")
    parser.add_argument(
        "--uint8-input", action="store_true", help="take uint8 RGB values: the file scales and normalises them"
    )
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    loaded = load_model(arguments)
    model = create_model(loaded.config.name, weights=loaded)
    path = arguments.output or loaded.config.name + FORMATS[arguments.format].suffix
    with writing(path):
        written = export(model, path, format=arguments.format, size=arguments.size, uint8_input=arguments.uint8_input)
    show(written)
    say(f"{printable(str(written))}: {arguments.format}, compared with {loaded.name}")
    return 0
