"""Classify many images and load weights many times, and watch what the process holds on to.

    python -m tools.soak --images 50000 --loads 200

Prints a line per sample and ends with status 1 where memory, file descriptors or threads have grown. Linux only: it
reads /proc.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from hardnet import Classifier, create_model

MODEL, TAG = "hardnet39ds", "FASHION_MNIST"
FORMS = ("png", "jpg", "bmp", "gif", "webp", "tif", "ppm")
FILES = 500
MEBIBYTE = 1 << 20
ALLOWED_GROWTH = 32 * MEBIBYTE
"""Between the middle of the first and of the last quarter of the samples: allocators breathe by some mebibytes."""


@dataclass(frozen=True)
class Sample:
    """What the process holds at one moment."""

    done: int
    resident: int
    """Bytes."""
    descriptors: int
    threads: int

    def __str__(self) -> str:
        return f"{self.done:>6}  {self.resident / MEBIBYTE:7.1f} MiB  {self.descriptors} files  {self.threads} threads"


def take_sample(done: int) -> Sample:
    """Look at this process, after a garbage collection."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(done, pages * 4096, len(list(Path("/proc/self/fd").iterdir())), threading.active_count())


def growth(samples: list[Sample]) -> list[str]:
    """Say what has grown over the samples; empty where nothing has."""
    quarter = max(len(samples) // 4, 1)
    first, last = samples[:quarter], samples[-quarter:]

    def middle(part: list[Sample]) -> int:
        return sorted(sample.resident for sample in part)[len(part) // 2]

    found = []
    if (more := middle(last) - middle(first)) > ALLOWED_GROWTH:
        found.append(f"resident memory grew by {more / MEBIBYTE:.1f} MiB")
    for name in ("descriptors", "threads"):
        before, after = (max(getattr(sample, name) for sample in part) for part in (first, last))
        if after > before:
            found.append(f"{name} grew from {before} to {after}")
    return found


def make_images(folder: Path) -> tuple[list[Path], int]:
    """Write some hundred small pictures of all kinds; every fiftieth is cut short. Return them, and how many are."""
    rng = random.Random(0)  # noqa: S311  (pictures, not secrets)
    paths = []
    for number in range(FILES):
        size = rng.randint(8, 96), rng.randint(8, 96)
        picture = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3))
        path = folder / f"{number:03}.{FORMS[number % len(FORMS)]}"
        picture.save(path)
        if number % 50 == 49:
            path.write_bytes(path.read_bytes()[:20])
        paths.append(path)
    return paths, FILES // 50


def classify(images: int, samples: int = 50) -> tuple[list[Sample], int]:
    """Classify ``images`` files in one stream; return the samples, and how many files were refused."""
    classifier, taken, failed = Classifier(MODEL, weights=TAG, device="cpu"), [], 0
    with tempfile.TemporaryDirectory() as name:
        paths, bad = make_images(Path(name))

        def endless() -> Iterator[Path]:
            while True:
                yield from paths

        stream = classifier.stream((path for path, _ in zip(endless(), range(images), strict=False)))
        for done, result in enumerate(stream, start=1):
            failed += result.error is not None
            if done % max(images // samples, 1) == 0:
                taken.append(take_sample(done))
    if images % FILES == 0 and failed != bad * images // FILES:
        raise RuntimeError(f"{failed} files were refused, {bad} of every {FILES} are bad")
    return taken, failed


def load(loads: int) -> list[Sample]:
    """Build the model with its weights again and again."""
    taken = []
    for number in range(1, loads + 1):
        create_model(MODEL, weights=TAG)
        if number % max(loads // 40, 1) == 0:
            taken.append(take_sample(number))
    return taken


def main() -> int:
    """Do both, print the samples and say what has grown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--loads", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import logging

    logging.getLogger("hardnet").setLevel(logging.ERROR)  # the bad files are meant to be bad
    start = time.monotonic()
    taken, failed = classify(arguments.images)
    print(f"{arguments.images} images in {time.monotonic() - start:.0f} s, {failed} refused")
    print(*taken, sep="\n")
    loaded = load(arguments.loads)
    print(f"{arguments.loads} loads")
    print(*loaded, sep="\n")
    found = growth(taken) + growth(loaded)
    print(*(found or ["nothing has grown"]), sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
