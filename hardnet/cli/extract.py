"""The verb ``extract``: embeddings of images into a file."""

from __future__ import annotations

import argparse
import sys

from ..factory import DEFAULT_TAG, list_models
from ..models.config import CONFIGS
from ..utils.errors import ImageError
from ..utils.progress import ProgressBar
from ..utils.text import check_count
from .arguments import SOME_FAILED, Verbs
from .embedding_file import EmbeddingFile


def add_verb(verbs: Verbs) -> None:
    """Add ``extract`` to the command line's verbs."""
    parser = verbs.add_parser("extract", help="write the embeddings of images to a file")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="an image, or a folder that is searched for images")
    parser.add_argument("--output", required=True, metavar="FILE", help="a .npz or .csv file")
    parser.add_argument("--model", choices=list_models(), default="hardnet39ds")
    parser.add_argument("--weights", default=DEFAULT_TAG, help="a tag or a file (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at once (default: 32)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.set_defaults(run=_run_extract)


def _run_extract(arguments: argparse.Namespace) -> int:
    from ..inference import Extractor

    check_count("--batch-size", arguments.batch_size, least=1)
    width = CONFIGS[arguments.model].transition_channels[-1]
    failed = 0
    with EmbeddingFile(arguments.output, width) as file:
        extractor = Extractor(arguments.model, weights=arguments.weights, device=arguments.device)
        with ProgressBar(None, "extracting", unit="images") as bar:
            for embedding in extractor.stream(arguments.paths, arguments.batch_size):
                if embedding.vector is not None:
                    file.add(embedding.source, embedding.vector)
                failed += embedding.error is not None
                bar.update(1)
        if not file.rows:
            raise ImageError("none of the images could be used, nothing was written")
    if failed:
        print(f"hardnet: {failed} of {file.rows + failed} images could not be used", file=sys.stderr)
    return SOME_FAILED if failed else 0
