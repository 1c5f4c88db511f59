"""The verb ``demo``: serve the demo page."""

import argparse

from .arguments import Verbs, pick
from .output import show


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("demo", help="serve a web page that classifies pictures")
    parser.add_argument("--weights", help="your own model: a training run, a file, a saved folder, hf-hub:OWNER/NAME")
    parser.add("--model")
    parser.add_argument("--host", help="default: GRADIO_SERVER_NAME, or 127.0.0.1, which only this machine reaches")
    parser.add_argument("--port", type=int, help="default: GRADIO_SERVER_PORT, or 7860; 0 takes a free one")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a host name to be reached by"
    )
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from ..demo.page import serve

    if arguments.model and not arguments.weights:
        raise ValueError("--model requires --weights")
    serve(arguments.host, arguments.port, arguments.allow_host, **pick(arguments, "weights", "model"), announce=show)
    return 0
