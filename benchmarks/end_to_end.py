"""How fast a folder of photographs is classified, reading included, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.candidates import accelerated, network, settle
from benchmarks.rows import OURS, Row
from hardnet.images.read import load_image
from hardnet.inference import Classifier
from hardnet.utils.text import table

HEADER = (
    "model",
    "engine",
    "precision",
    "batch",
    "images/s",
    "model runs",
    "decode",
    "preprocess",
    "model and rest",
    "all",
    "model alone, images/s",
)
_WARM_UP = 32
"""Images, at most, that are classified before anything is timed."""
_MODEL_BATCHES = 20
"""At most, to time the model alone."""


@dataclass
class Clock:
    """Adds up time, in seconds."""

    wall: float = 0.0
    processor: float = 0.0
    """Of all threads of this process together."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time within the block."""
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.processor += time.process_time() - processor

    def per_image(self, images: int) -> dict[str, float]:
        """Return milliseconds per image."""
        return {
            "wall_ms": round(1000 * self.wall / images, 3),
            "processor_ms": round(1000 * self.processor / images, 3),
        }


def measure_folder(
    row: Row, paths: Sequence[Path], *, threads: int | None, device: str, photographs: Path | None
) -> dict[str, Any]:
    """Classify the files with one model and see where the time goes; return the figures, ready for JSON.

    ``Classifier`` decodes and preprocesses in threads while the model runs. Durations do therefore not add up, but
    processor time does. Decoding (:func:`hardnet.images.load_image`) and preprocessing (the weights' transform) are
    done once more, alone and in one thread each, and what the whole has used beyond them is the model's and the rest's.
    The model is also run alone on full batches, for the rate that it would allow if pictures came for nothing.

    Args:
        row: one of our models, engine, precision and batch size. Its size plays no role: it is the transform's.
        paths: the images.
        threads: for torch and the engine; None leaves their default.
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
    fast = accelerated(model.eval().to(device), row, example, threads, photographs)
    classifier = Classifier(fast, device=device)
    whole, decode, preprocess, alone = Clock(), Clock(), Clock(), Clock()

    for _ in classifier.stream(paths[:_WARM_UP], batch_size=row.batch_size):
        pass
    with _forward_passes(fast) as within, whole.running():
        for result in classifier.stream(paths, batch_size=row.batch_size):
            _ = result.top  # raises where the file could not be used
    for path in paths:
        with decode.running():
            image = load_image(path)
        with preprocess.running():
            classifier.transform(image)
    batches = max(1, min(_MODEL_BATCHES, len(paths) // row.batch_size))
    for number in range(batches + 1):
        with alone.running() if number else nullcontext(), torch.inference_mode():
            fast(example)
            _finish(example.device)
    return {
        "source": OURS,
        "model": row.model,
        "engine": row.engine,
        "precision": row.precision,
        "batch_size": row.batch_size,
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
    """Time the forward passes of a model within the block, in the thread that calls it."""
    clock, started = Clock(), [0.0]

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        started[0] = time.perf_counter()

    def after(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        _finish(inputs[0].device)
        clock.wall += time.perf_counter() - started[0]

    handles = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    try:
        yield clock
    finally:
        for handle in handles:
            handle.remove()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells under ``HEADER``."""
    whole = row["whole"]["processor_ms"]
    before = [row[part]["processor_ms"] for part in ("decode", "preprocess")]
    return (
        row["model"],
        row["engine"],
        row["precision"],
        str(row["batch_size"]),
        f"{row['images_per_second']:.1f}",
        f"{row['model_runs']:.0%}",
        *(f"{part:.1f} ({part / whole:.0%})" for part in (*before, whole - sum(before))),
        f"{whole:.1f}",
        f"{1000 / row['model_alone']['wall_ms']:.1f}",
    )


def for_terminal(results: dict[str, Any]) -> str:
    """Return every row, and what the columns mean."""
    protocol = results["protocol"]
    note = (
        f"Classifier on {protocol['images']:,} JPEG files of about 500 x 375 pixels. model runs: share of the time in "
        "which it does; from decode to all: milliseconds of processor time per image, of all threads together"
    )
    lines = [f"left out: {entry['row']}: {entry['reason']}" for entry in results["left_out"]]
    rows = [cells(row) for row in results["rows"]]
    return "\n".join([table(HEADER, rows) if rows else "nothing was measured", "", note, *lines])
