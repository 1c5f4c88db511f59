"""The command line: argument parsing, and one call into the library per verb.

Exit status: 0, all went well; 1, some images or files were unusable and the rest was done, or a training run stopped
short; 2, the command line is wrong or there is nothing to work on; 3, weights could not be had or do not fit; 130,
interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .config import CONFIGS
from .errors import ExportError, ImageError, WeightsError
from .factory import DEFAULT_TAG, list_models

if TYPE_CHECKING:
    from typing import TypeAlias

    from .classify import ImageResult

    Verbs: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

PACKAGED_MODEL, PACKAGED_TAG = "hardnet39ds", "FASHION_MNIST"
"""What `predict` takes unless told otherwise: it needs no download."""

_PACKAGED_NOTE = (
    f"hardnet: {PACKAGED_MODEL} {PACKAGED_TAG}, ten kinds of garments; for photographs of other things: "
    f"--weights {DEFAULT_TAG} (a download)"
)

SOME_FAILED, WRONG_USE, NO_WEIGHTS, INTERRUPTED = 1, 2, 3, 130

Verb = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: the arguments without the program's name; None takes those of the process.
    """
    arguments = _parser().parse_args(argv)
    _prepare_terminal(arguments.verbose)
    verb: Verb = arguments.run
    try:
        return verb(arguments)
    except WeightsError as error:
        return _fail(error, NO_WEIGHTS)
    except ExportError as error:
        return _fail(error, SOME_FAILED)
    except (ImageError, ValueError, ImportError) as error:
        return _fail(error, WRONG_USE)
    except BrokenPipeError:
        # The reader has gone, as `head` does. Python would complain once more on closing standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED


def _fail(error: Exception, status: int) -> int:
    print(f"hardnet: {error}", file=sys.stderr)
    return status


def _prepare_terminal(verbose: bool) -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names need not be printable in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("hardnet: %(message)s"))
    logger = logging.getLogger("hardnet")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hardnet", description="HarDNet image classifiers.", epilog=__doc__.split("\n\n", 1)[1]
    )
    parser.add_argument("--version", action="version", version=f"hardnet {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more on standard error")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    from .benchmark.cli import add_benchmark
    from .deploy.cli import add_export
    from .extract import add_extract
    from .weights_cli import add_weights

    _add_predict(verbs)
    add_extract(verbs)
    add_export(verbs)
    _add_info(verbs)
    add_weights(verbs)
    _add_training(verbs)
    _add_demo(verbs)
    add_benchmark(verbs)
    return parser


def _add_predict(verbs: Verbs) -> None:
    from .deploy.cli import add_engine_arguments

    parser = verbs.add_parser("predict", help="classify images")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="an image, or a folder that is searched for images")
    parser.add_argument("--model", choices=list_models(), help=f"default: {PACKAGED_MODEL}")
    parser.add_argument(
        "--weights",
        help=f"a tag or a file; default: {DEFAULT_TAG} with --model, else {PACKAGED_TAG}, which needs no download",
    )
    parser.add_argument("--topk", type=_positive, default=5, metavar="K", help="classes per image (default: 5)")
    parser.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="images at once (default: 32)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--labels", metavar="FILE", help="names of the classes, one per line")
    add_engine_arguments(parser)
    parser.add_argument("--calibration", nargs="+", metavar="PATH", help="for int8: some hundred images like PATH")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table")
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    from . import report
    from .classify import Classifier

    model, weights = arguments.model or PACKAGED_MODEL, arguments.weights or DEFAULT_TAG
    if arguments.model is None and arguments.weights is None:
        weights = PACKAGED_TAG
        print(_PACKAGED_NOTE, file=sys.stderr)
    classifier = Classifier(
        model,
        weights=weights,
        device=arguments.device,
        labels=arguments.labels,
        engine=arguments.engine,
        precision=arguments.precision,
        calibration=arguments.calibration,
    )
    results = classifier.stream(arguments.paths, topk=arguments.topk, batch_size=arguments.batch_size)
    counted = _Counted(results)
    searching = any(Path(path).is_dir() for path in arguments.paths)
    for text in report.predictions(_with_progress(counted, searching), arguments.format):
        print(text, flush=sys.stdout.isatty())
    if counted.failed:
        print(f"hardnet: {counted.failed} of {counted.total} images could not be classified", file=sys.stderr)
    return SOME_FAILED if counted.failed else 0


class _Counted:
    """Passes results on and counts them."""

    def __init__(self, results: Iterable[ImageResult]) -> None:
        self._results = results
        self.total = self.failed = 0

    def __iter__(self) -> Iterator[ImageResult]:
        for result in self._results:
            self.total += 1
            self.failed += result.error is not None
            yield result


def _with_progress(results: Iterable[ImageResult], searching: bool) -> Iterator[ImageResult]:
    """Show how far a folder is; not where the results themselves scroll by on the terminal."""
    from .progress import ProgressBar

    with ProgressBar(None, "classifying", unit="images", enabled=searching and not sys.stdout.isatty()) as bar:
        for result in results:
            bar.update(1)
            yield result


def _add_info(verbs: Verbs) -> None:
    from .deploy.cli import image_size

    parser = verbs.add_parser("info", help="layers, parameters, multiply-accumulates and memory traffic")
    parser.add_argument("model", nargs="?", choices=list_models(), help="one model, stage by stage (default: all)")
    parser.add_argument("--size", type=image_size, default=(224, 224), metavar="H[xW]", help="pixels (default: 224)")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    from . import report
    from .complexity import measure_cost

    height, width = arguments.size
    names = [arguments.model] if arguments.model else list_models()
    costs = [measure_cost(CONFIGS[name], height=height, width=width) for name in names]
    print(report.cost(costs[0]) if arguments.model else report.costs(costs))
    return 0


def _add_training(verbs: Verbs) -> None:
    from .training import cli as training

    train = verbs.add_parser("train", help="train a model, on one process or under torchrun")
    training.add_train_arguments(train)
    train.set_defaults(run=training.run_train)
    evaluate = verbs.add_parser("evaluate", help="measure top-1 and top-5 errors")
    training.add_evaluate_arguments(evaluate)
    evaluate.set_defaults(run=training.run_evaluate)


def _add_demo(verbs: Verbs) -> None:
    parser = verbs.add_parser("demo", help="a page in the browser: pictures in, classes out")
    parser.add_argument("--host", help="default: GRADIO_SERVER_NAME, or 127.0.0.1, which only this machine reaches")
    parser.add_argument("--port", type=int, help="default: GRADIO_SERVER_PORT, or 7860; 0 takes a free one")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import serve

    serve(arguments.host, arguments.port)
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 up is wanted, got {text!r}")
    return int(text)
