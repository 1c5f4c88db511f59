"""The verb ``explain``: show which parts of an image support a class (Grad-CAM)."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..utils.files import write_atomically, writing
from ..utils.text import printable
from .arguments import Verbs, add_model_arguments, chosen_model

_LEAST_SIDE = 448
"""Pixels: smaller pictures are enlarged by a whole factor."""


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("explain", help="show which parts of an image support a class (Grad-CAM)")
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--output", required=True, metavar="FILE", help="the picture: .png, .jpg, .webp, ...")
    add_model_arguments(parser)
    parser.add_argument("--label", metavar="CLASS", help="name or index of the class (default: the most probable)")
    parser.add_argument("--stride", type=int, help="of the feature map, 2 to 32 (default: the deepest of 4 x 4 pixels)")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the map over the image (default: 0.5)")
    parser.set_defaults(run=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    from PIL import Image

    from ..inference.classifier import Classifier
    from ..inference.gradcam import explain

    path = Path(arguments.output)
    form = Image.registered_extensions().get(path.suffix.lower())
    if form not in Image.SAVE:
        raise ValueError(f"{printable(str(path))}: Pillow writes no pictures with the extension {path.suffix!r}")
    model, weights = chosen_model(arguments)
    label = int(arguments.label) if (arguments.label or "").isdecimal() else arguments.label
    classifier = Classifier(model, weights=weights, device=arguments.device, labels=arguments.labels)
    explanation = explain(classifier, arguments.image, label=label, stride=arguments.stride)
    drawn = explanation.overlay(arguments.opacity)
    enlargement = max(1, _LEAST_SIDE // min(drawn.size))
    drawn = drawn.resize((drawn.width * enlargement, drawn.height * enlargement))
    with writing(path), write_atomically(path) as file:
        drawn.save(file, form)
    print(f"{explanation.prediction.probability:.2%}  {printable(explanation.prediction.label)}")
    return 0
