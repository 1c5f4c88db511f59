"""Measure how fast a folder of photographs is classified, decoding included, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.networks import Case, images_of, in_engine, settled_network
from hardnet.engines.timing import time_pass
from hardnet.images.batches import Decode
from hardnet.images.preprocess import Preprocessing
from hardnet.images.read import decode_image
from hardnet.inference.classifier import Classifier

WARM_UP_IMAGES, MODEL_BATCHES = 32, 20
"""Images classified before anything is timed; batches to time the model alone, at most."""


def measure_folder(case: Case, paths: Sequence[Path], device: str, decoding: Decode) -> dict[str, Any]:
    """Classify the files with one model and return the figures, ready for JSON.

    ``Classifier`` decodes and preprocesses in threads while the model runs: durations do not add up, but processor
    time does. Decoding and preprocessing are therefore repeated alone, in one thread; the rest of the processor time is
    that of the model and the overhead. The model is also timed alone on full batches.
    """
    preprocessing = Preprocessing()
    fast = in_engine(settled_network(case, device), case, preprocessing)
    classifier = Classifier(fast, device=device, decode=decoding)
    least_side = 2 * preprocessing.resize if decoding == "fast" else None
    for _ in classifier.stream(paths[:WARM_UP_IMAGES], batch_size=case.batch_size):
        pass
    whole, decode, prepare, alone = torch.zeros(4, 2, dtype=torch.float64)
    start = _clocks()
    for result in classifier.stream(paths, batch_size=case.batch_size):
        _ = result.top  # raises if the file could not be read
    whole += _clocks() - start
    for path in paths:
        start = _clocks()
        image, box = decode_image(path, least_side=least_side)
        middle = _clocks()
        preprocessing.normalise(preprocessing.pixels(image, fast=decoding == "fast", box=box))
        decode += middle - start
        prepare += _clocks() - middle
    example = images_of(case.shape, device)
    batches = max(1, min(MODEL_BATCHES, len(paths) // case.batch_size))
    time_pass(fast, example)
    start = _clocks()
    for _ in range(batches):
        time_pass(fast, example)
    alone += _clocks() - start
    return {
        **{name: getattr(case, name) for name in ("source", "model", "engine", "precision", "batch_size")},
        "decoding": decoding,
        "images": len(paths),
        "images_per_second": round(len(paths) / whole[0].item(), 2),
        "whole": _per_image(whole, len(paths)),
        "decode": _per_image(decode, len(paths)),
        "preprocess": _per_image(prepare, len(paths)),
        "model_alone": _per_image(alone, batches * case.batch_size),
    }


def _clocks() -> Tensor:
    """Return the time and the processor time of all threads of this process, in seconds."""
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def _per_image(seconds: Tensor, images: int) -> dict[str, float]:
    wall, processor = (1000 * seconds / images).tolist()
    return {"wall_ms": round(wall, 3), "processor_ms": round(processor, 3)}
