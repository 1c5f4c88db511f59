"""Measure how fast a folder of photographs is classified, decoding included, and where the time goes."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.networks import Case, build, images_of
from hardnet.engines.timing import time_pass
from hardnet.images.batches import Decode
from hardnet.images.preprocess import Preprocessing
from hardnet.images.read import decode_image
from hardnet.inference.classifier import Classifier

BATCHES = 20
"""Batches on which the model alone is timed, at most as many as there are files for."""


def measure_folder(case: Case, paths: Sequence[Path], device: str, decoding: Decode) -> dict[str, Any]:
    """Classify the files with one model and return the figures, ready for JSON.

    ``Classifier`` decodes and preprocesses in threads while the model runs. Decoding and preprocessing are therefore
    repeated alone, in one thread, and the model is timed alone on full batches.
    """
    preprocessing = Preprocessing()
    fast = build(case, device, preprocessing)
    classifier = Classifier(fast, device=device, decode=decoding)
    for _ in classifier.stream(paths[: case.batch_size], batch_size=case.batch_size):
        pass  # a warm-up
    start = perf_counter()
    for result in classifier.stream(paths, batch_size=case.batch_size):
        _ = result.top  # raises if the file could not be read
    whole = perf_counter() - start
    decode = prepare = 0.0
    least_side = 2 * preprocessing.resize if decoding == "fast" else None
    for path in paths:
        start = perf_counter()
        image, box = decode_image(path, least_side=least_side)
        middle = perf_counter()
        preprocessing.normalise(preprocessing.pixels(image, fast=decoding == "fast", box=box))
        decode += middle - start
        prepare += perf_counter() - middle
    example = images_of(case.shape, device)
    time_pass(fast, example)
    batches = max(1, min(BATCHES, len(paths) // case.batch_size))
    start = perf_counter()
    for _ in range(batches):
        time_pass(fast, example)
    alone = perf_counter() - start
    return {
        **{name: getattr(case, name) for name in ("source", "model", "engine", "precision", "batch_size")},
        "decoding": decoding,
        "images": len(paths),
        "images_per_second": round(len(paths) / whole, 2),
        "decode_ms": round(1000 * decode / len(paths), 3),
        "preprocess_ms": round(1000 * prepare / len(paths), 3),
        "model_ms": round(1000 * alone / batches / case.batch_size, 3),
    }
