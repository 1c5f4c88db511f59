"""The verb ``export``: write a model to a file for other programs."""

import argparse

from .. import create_model, export, list_models
from ..engines import FORMATS
from ..engines.exporting import TOLERANCES
from ..images.batches import prepare_each
from ..images.preprocess import Preprocessing
from ..utils.files import writing
from ..utils.text import printable
from .arguments import Verbs, check_calibration, load_model, pick, say
from .output import show


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("export", help="write a model to a file for other programs")
    parser.add_argument("model", nargs="?", choices=list_models(), help="architecture (default: that of the weights)")
    parser.add("--weights")
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="default: %(default)s")
    parser.add_argument("--output", metavar="FILE", help="default: the model's name and the format's suffix")
    text = "take uint8 RGB values: the file scales and normalises them"
    parser.add_argument("--uint8-input", action="store_true", help=text)
    parser.add_argument("--features", action="store_true", help="return the pooled features in place of the logits")
    parser.add_argument(
        "--precision", choices=list(TOLERANCES), default="fp32", help="fp16 and int8: onnx and openvino (default: fp32)"
    )
    parser.add("--calibration")
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    check_calibration(arguments, required=True)
    loaded = load_model(arguments)
    model = create_model(loaded.config.name, weights=loaded)
    path = arguments.output or loaded.config.name + FORMATS[arguments.format].suffix
    options = pick(arguments, "format", "uint8_input", "features", "precision")
    if arguments.calibration:
        transform = model.preprocessing or Preprocessing()
        options["calibration"] = list(prepare_each(arguments.calibration, transform, model))
    with writing(path):
        written = export(model, path, **options)
    show(written)
    say(f"{printable(str(written))}: {arguments.format}, compared with {loaded.name}")
    return 0
