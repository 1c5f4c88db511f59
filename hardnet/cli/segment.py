"""The verb ``segment``: write the class of every pixel of images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..utils.files import write_atomically, writing
from ..utils.progress import progress_bar
from ..utils.text import printable
from ..utils.validation import positive
from .arguments import Verbs, add_calibration, add_device, add_engine_arguments, check_calibration, status_of_images
from .jobs import add_path_arguments, list_paths, targets_of
from .output import show, shown_on_terminal

_RUN = "hardnet"
"""Text in a map's file that says what computed it."""


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("segment", help="write the class of every pixel of images (FC-HarDNet-70)")
    add_path_arguments(parser)
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="weights of fchardnet70: a .pkl, .pth, ... file"
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder of the maps, .png files of class indices"
    )
    parser.add_argument("--overlay", action="store_true", help="write NAME.overlay.png too: the classes over the image")
    parser.add_argument("--resume", action="store_true", help="skip the images that have a map")
    parser.add_argument("--overwrite", action="store_true", help="replace maps that exist")
    parser.add_argument("--labels", metavar="FILE", help="names of the classes, one per line")
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="images at once (default: 1)")
    add_device(parser)
    add_engine_arguments(parser)
    add_calibration(parser)
    parser.set_defaults(run=_segment)


def _segment(arguments: argparse.Namespace) -> int:
    from PIL.PngImagePlugin import PngInfo

    from ..inference.segmenter import Segmenter

    check_calibration(arguments, required=True)
    jobs = list(targets_of(list_paths(arguments), Path(arguments.output)))
    names = ("device", "labels", "engine", "precision", "calibration")
    segmenter = Segmenter(
        "fchardnet70", weights=arguments.weights, **{name: getattr(arguments, name) for name in names}
    )
    run, info, failed = segmenter.describe() | {"overlay": arguments.overlay}, PngInfo(), 0
    info.add_text(_RUN, json.dumps(run))
    remaining = [job for job in jobs if arguments.overwrite or not _is_done(job[1], run, arguments.resume)]
    segmenter.fix_engine(len(jobs))
    results = segmenter.stream([item for item, _ in remaining], batch_size=arguments.batch_size)
    begin = len(jobs) - len(remaining)
    with progress_bar(len(jobs), "progress", unit="images", initial=begin, enabled=not shown_on_terminal()) as bar:
        for result, (_, target) in zip(results, remaining, strict=True):
            bar.update(1)
            if result.error is not None:
                failed += 1
                continue
            with writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                if arguments.overlay:  # first: an image with a map is done
                    with write_atomically(target.with_suffix(".overlay.png")) as file:
                        result.overlay().save(file, "PNG")
                with write_atomically(target) as file:
                    result.to_image().save(file, "PNG", pnginfo=info)
            show(f"{printable(str(target))}  {printable(result.summary())}")
    return status_of_images(failed, len(jobs))


def _is_done(target: Path, run: dict[str, object], resume: bool) -> bool:
    """Return whether a map exists and is of this run.

    Raises:
        ValueError: it exists and is of another run, or the run is not to be resumed.
    """
    from PIL import Image

    if not target.exists():
        return False
    if not resume:
        raise ValueError(f"{printable(str(target))} exists: --resume skips its image, --overwrite replaces it")
    try:
        with Image.open(target) as picture:
            if json.loads(picture.info.get(_RUN, "")) == run:
                return True
    except (OSError, ValueError):
        pass
    raise ValueError(
        f"{printable(str(target))} is no map of the same weights and options: use these, --overwrite or another folder"
    )
