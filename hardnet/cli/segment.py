"""The verb ``segment``: write the class of every pixel of images."""

import argparse
import json
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .. import Segmenter
from ..utils.files import write_atomically, writing
from ..utils.text import printable
from ..utils.validation import positive
from .arguments import Verbs, check_calibration, pick, status_of_images
from .jobs import list_paths, targets_of
from .output import show


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("segment", help="write the class of every pixel of images (FC-HarDNet-70)")
    parser.add("paths", "--from-file")
    parser.add_argument("--weights", required=True, metavar="FILE", help="weights of fchardnet70, a .pkl or .pth file")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of .png maps; complete ones stay")
    parser.add_argument("--overlay", action="store_true", help="write NAME.overlay.png too: the classes over the image")
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="images at once (default: 1)")
    parser.add("--labels", "--device", "--engine", "--precision", "--calibration")
    parser.set_defaults(run=_segment)


def _segment(arguments: argparse.Namespace) -> int:
    check_calibration(arguments, required=True)
    jobs = list(targets_of(list_paths(arguments), Path(arguments.output)))
    options = pick(arguments, "weights", "device", "labels", "engine", "precision", "calibration")
    segmenter = Segmenter("fchardnet70", **options)
    info, failed = PngInfo(), 0
    run = json.dumps(segmenter.describe() | {"overlay": arguments.overlay})
    info.add_text("hardnet", run)
    remaining = [(item, target) for item, target in jobs if not target.exists()]
    for target in {target for _, target in jobs if target.exists()}:
        with Image.open(target) as picture:
            if picture.info.get("hardnet") != run:
                raise ValueError(f"{printable(str(target))} is of other weights or options: use another folder")
    segmenter.fix_engine(len(jobs))
    results = segmenter.stream([item for item, _ in remaining], arguments.batch_size)
    for result, (_, target) in zip(results, remaining, strict=True):
        if result.error is not None:
            failed += 1
            continue
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if arguments.overlay:
                with write_atomically(target.with_suffix(".overlay.png")) as file:
                    result.overlay().save(file, "PNG")
            with write_atomically(target) as file:
                result.to_image().save(file, "PNG", pnginfo=info)
        show(f"{printable(str(target))}  {printable(result.summary())}")
    return status_of_images(failed, len(jobs))
