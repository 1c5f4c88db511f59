"""The verb ``explain``: show which parts of images support a class (Grad-CAM)."""

import argparse
from pathlib import Path

from PIL import Image

from .. import Classifier, ImageError, explain
from ..images.batches import expand
from ..utils.files import write_atomically, writing
from ..utils.text import printable
from .arguments import Verbs, load_model, say, status_of_images
from .jobs import list_paths, targets_of
from .output import show


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("explain", help="show which parts of images support a class (Grad-CAM)")
    parser.add("paths", "--from-file")
    parser.add_argument(
        "--output", required=True, metavar="FILE|DIR", help="one image: a .png, .jpg, .webp, ...; several: a folder"
    )
    parser.add("--model", "--weights", "--labels", "--device")
    parser.add_argument("--label", metavar="CLASS", help="name or index of the class (default: the most probable)")
    parser.add_argument("--stride", type=int, help="of the feature map, 2 to 32 (default: the deepest of 8 x 8 pixels)")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the map over the image (default: 0.5)")
    parser.set_defaults(run=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    paths, output = list_paths(arguments), Path(arguments.output)
    single = len(paths) == 1 and not Path(paths[0]).is_dir() and output.suffix != "" and not output.is_dir()
    if single and Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{printable(str(output))}: Pillow writes no pictures with the extension {output.suffix!r}")
    jobs = [(item, output) for item in expand(paths)] if single else list(targets_of(paths, output))
    classifier = Classifier(load_model(arguments), device=arguments.device, labels=arguments.labels)
    failed = 0
    for item, target in jobs:
        try:
            if isinstance(item.content, ImageError):
                raise item.content
            explanation = explain(classifier, item.content, label=arguments.label, stride=arguments.stride)
        except ImageError as error:
            if single:
                raise
            say(error)
            failed += 1
            continue
        with writing(target):
            if not single:
                target.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(target) as file:
                explanation.overlay(arguments.opacity).save(file, Image.registered_extensions()[target.suffix.lower()])
        name = "" if single else f"  {printable(str(target))}"
        show(f"{explanation.prediction.probability:.2%}  {printable(explanation.prediction.label)}{name}")
    return status_of_images(failed, len(jobs))
