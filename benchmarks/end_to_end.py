"""Measure how fast a folder of photographs is classified, decoding included, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.candidates import accelerated, network
from benchmarks.rows import Row
from hardnet.engines.timing import settle
from hardnet.images.preprocess import Preprocessing
from hardnet.images.read import load_image
from hardnet.inference.classifier import Classifier

COLUMNS = ("model", "engine", "precision", "batch", "images/s", "model runs", "decode", "preprocess", "model and rest")
HEADER = (*COLUMNS, "all", "model alone, images/s")
WARM_UP_IMAGES, MODEL_BATCHES = 32, 20
"""At most: images classified before anything is timed; batches to time the model alone."""


class Clock:
    """Add up wall time and the processor time of all threads of this process, in seconds."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time within the block."""
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.processor += time.process_time() - processor

    def per_image(self, images: int) -> dict[str, float]:
        """Return milliseconds per image."""
        wall, processor = (round(1000 * seconds / images, 3) for seconds in (self.wall, self.processor))
        return {"wall_ms": wall, "processor_ms": processor}


def measure_folder(
    row: Row, paths: Sequence[Path], *, threads: int | None, device: str, photographs: Path | None
) -> dict[str, Any]:
    """Classify the files with one model and return the figures, ready for JSON.

    ``Classifier`` decodes and preprocesses in threads while the model runs: durations do not add up, but processor
    time does. Decoding and preprocessing are therefore repeated alone, in one thread; the rest of the processor time is
    that of the model and the overhead. The model is also timed alone on full batches.

    Args:
        row: one of our models, engine, precision and batch size. The size of the images is that of the transform.
        paths: the images.
        threads: CPU threads; None is the default.
        device: where the model runs.
        photographs: a folder of images to calibrate int8 on.

    Raises:
        ImportError, NotImplementedError, ValueError: see :func:`benchmarks.candidates.build`.
        ImageError: a file cannot be read.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    model = network(row)
    settle(model, row.height, row.width)
    example = torch.randn(row.batch_size, 3, row.height, row.width, device=device)
    fast = accelerated(model.eval().to(device), row, example, threads, photographs, Preprocessing())
    classifier = Classifier(fast, device=device)
    whole, decode, preprocess, alone = Clock(), Clock(), Clock(), Clock()

    for _ in classifier.stream(paths[:WARM_UP_IMAGES], batch_size=row.batch_size):
        pass
    with _forward_passes(fast) as within, whole.running():
        for result in classifier.stream(paths, batch_size=row.batch_size):
            _ = result.top  # raises if the file could not be read
    for path in paths:
        with decode.running():
            image = load_image(path)
        with preprocess.running():
            classifier.transform(image)
    batches = max(1, min(MODEL_BATCHES, len(paths) // row.batch_size))
    for number in range(batches + 1):
        with alone.running() if number else nullcontext(), torch.inference_mode():
            fast(example)
            _finish(example)
    return {
        **{name: getattr(row, name) for name in ("source", "model", "engine", "precision", "batch_size")},
        "images": len(paths),
        "images_per_second": round(len(paths) / whole.wall, 2),
        "model_runs": round(within.wall / whole.wall, 4),
        "whole": whole.per_image(len(paths)),
        "decode": decode.per_image(len(paths)),
        "preprocess": preprocess.per_image(len(paths)),
        "model_alone": alone.per_image(batches * row.batch_size),
    }


@contextmanager
def _forward_passes(model: nn.Module) -> Iterator[Clock]:
    """Time the forward passes of a model within the block."""
    clock, started = Clock(), [0.0]

    def before(*_: Any) -> None:
        started[0] = time.perf_counter()

    def after(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        _finish(inputs[0])
        clock.wall += time.perf_counter() - started[0]

    handles = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    yield clock
    for handle in handles:
        handle.remove()


def _finish(images: torch.Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def cells(row: dict[str, Any]) -> list[str]:
    """Return the cells under ``HEADER``."""
    whole = row["whole"]["processor_ms"]
    before = [row[part]["processor_ms"] for part in ("decode", "preprocess")]
    return [
        *(str(row[name]) for name in ("model", "engine", "precision", "batch_size")),
        f"{row['images_per_second']:.1f}",
        f"{row['model_runs']:.0%}",
        *(f"{part:.1f} ({part / whole:.0%})" for part in (*before, whole - sum(before))),
        f"{whole:.1f}",
        f"{1000 / row['model_alone']['wall_ms']:.1f}",
    ]
