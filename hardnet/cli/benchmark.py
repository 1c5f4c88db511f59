"""The verb ``benchmark``: time models, engines and precisions against each other on this machine."""

import argparse
import time
from collections.abc import Iterator
from functools import partial
from typing import TypeAlias

import torch

from .. import Loaded, accelerate, create_model, list_models, load_weights
from ..engines import ENGINES, PRECISIONS, available_engines
from ..engines.timing import Step, estimate_statistics, quartiles, time_pass, timed_passes
from ..utils.devices import usable_device
from ..utils.text import table
from ..utils.validation import image_size, positive
from .arguments import SOME_FAILED, Verbs, say
from .output import show

PAUSE = 0.03  # seconds before each turn, in which the threads of the previous engine fall asleep
Key: TypeAlias = tuple[str, str, str]  # model, engine, precision
COLUMNS = ("model", "engine", "precision", "median ms", "lower quartile", "upper quartile", "images/s", "times eager")


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "benchmark",
        help="time models, engines and precisions against each other",
        description="Time models on random images, with random weights or those of --weights. They take turns in "
        "interleaved rounds.",
    )
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="default: all four")
    add("--weights", nargs="+", default=[], metavar="SOURCE", help="also trained models: files, folders, tags, ...")
    add("--engines", nargs="+", choices=ENGINES, metavar="ENGINE", help=f"{', '.join(ENGINES)} (default: installed)")
    add("--precisions", nargs="+", choices=PRECISIONS, default=["fp32"], metavar="P", help="default: fp32")
    add("--batch-size", type=positive, default=1, metavar="N", help="default: 1")
    add("--size", type=image_size, default=(224, 224), metavar="H[xW]", help="in pixels (default: 224)")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: torch's choice)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    add("--rounds", type=positive, default=10, metavar="N", help="turns of each row (default: %(default)s)")
    add("--turn-seconds", type=float, default=0.3, metavar="S", help="length of a turn (default: %(default)s)")
    parser.set_defaults(run=_benchmark)


def _benchmark(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    steps, left_out = _build(arguments)
    seconds: dict[Key, list[float]] = {key: [] for key in steps}
    for number in range(arguments.rounds):
        for key in steps if number % 2 == 0 else reversed(steps):
            time.sleep(PAUSE)
            seconds[key] += timed_passes(steps[key], arguments.turn_seconds)
    if steps:
        show(table(COLUMNS, _rows(seconds, arguments.batch_size)))
    for reason in left_out:
        say(f"left out: {reason}")
    return 0 if steps else SOME_FAILED


def _build(arguments: argparse.Namespace) -> tuple[dict[Key, Step], list[str]]:
    device = usable_device(arguments.device)
    images = torch.randn(arguments.batch_size, 3, *arguments.size).to(device)
    steps: dict[Key, Step] = {}
    left_out: list[str] = []
    models: dict[str, Loaded | None] = dict.fromkeys(arguments.models or ([] if arguments.weights else list_models()))
    models |= {loaded.name: loaded for loaded in map(load_weights, arguments.weights)}
    for name, loaded in models.items():
        torch.manual_seed(0)
        model = create_model(loaded.config.name if loaded else name, weights=loaded)
        if loaded is None:
            estimate_statistics(model, *arguments.size)
        build = partial(accelerate, model.eval().to(device), example_input=images, check=False)
        for precision in arguments.precisions:
            installed = available_engines(device, precision)
            for engine in arguments.engines or sorted(installed, key=ENGINES.index):
                say(f"building {name} {engine} {precision}")
                calibration = [images.cpu()] if precision == "int8" else None
                try:
                    fast = build(engine=engine, precision=precision, calibration=calibration)
                    steps[name, engine, precision] = partial(time_pass, fast, images)
                except (ImportError, RuntimeError, ValueError) as error:
                    left_out.append(f"{name} {engine} {precision}: {error}")
    return steps, left_out


def _rows(seconds: dict[Key, list[float]], batch_size: int) -> Iterator[tuple[str, ...]]:
    spreads = {key: quartiles(times) for key, times in seconds.items()}
    for (model, engine, precision), (lower, median, upper) in spreads.items():
        eager = spreads.get((model, "eager", "fp32"))
        milliseconds = [f"{1000 * value:.2f}" for value in (median, lower, upper)]
        speed = f"{batch_size / median:.4g}", f"{eager[1] / median:.2f}" if eager else "-"
        yield model, engine, precision, *milliseconds, *speed
