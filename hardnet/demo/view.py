"""Compute what the demo page shows of one picture: classes, input crop, Grad-CAM, times."""

from __future__ import annotations

import io
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..explain import activation_level, class_activation, overlay, seen_picture
from ..factory import get_weights
from ..images.read import load_image
from ..inference import Classifier
from ..models.network import HarDNet
from ..weights.catalog import WeightsRecord

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 50_000_000
"""The largest picture that is decoded, in pixels."""
SHOWN = 224
"""Pixels: the least side of the pictures that are shown."""

_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class View:
    """What the page shows of one picture."""

    top: dict[str, float]
    """The five most probable classes and their probabilities, 0 to 1."""
    seen: Image.Image
    """The crop that the network saw, small ones enlarged."""
    looked: Image.Image
    """Grad-CAM of the first class over it."""
    facts: str
    """A line with the times in milliseconds."""


def look(path: str, model: str, tag: str, max_pixels: int = MAX_PIXELS) -> View:
    """Classify a file and draw what the page shows of it. Threads take turns.

    Raises:
        ImageError: the picture cannot be read or has too many pixels; the message has its name without the folder.
        WeightsError: the weights cannot be loaded.
        ValueError: there is no such model, or it has no such weights.
        OSError: the file is not there.
    """
    record = get_weights(model, tag)
    with _one_at_a_time:
        classifier = _classifier(model, tag)
        network = cast(HarDNet, classifier.model)
        start = time.perf_counter()
        tensor = classifier.transform(load_image(_open(Path(path)), max_pixels=max_pixels))
        prepared = time.perf_counter()
        [result] = classifier.predict(tensor, topk=5)
        done = time.perf_counter()
        activation = class_activation(network, tensor, result.top.index)
    seen = seen_picture(tensor, record.preprocessing)
    stride = activation_level(network, *tensor.shape[1:]).stride
    facts = (
        f"Read and prepared in {1000 * (prepared - start):.0f} ms, classified in {1000 * (done - prepared):.0f} ms by "
        f"{record} ({classifier.device.type}). The overlay is Grad-CAM for {result.top.label!r} at stride {stride}."
    )
    top = {prediction.label: prediction.probability for prediction in result.predictions}
    return View(top, _enlarged(seen), _enlarged(overlay(seen, activation)), facts)


def about(record: WeightsRecord) -> str:
    """Return what a visitor should know of the weights, in two sentences."""
    names = record.categories
    classes = ", ".join(names) if len(names) <= 20 else f"the {len(names)} of ImageNet"
    return (
        f"Classes: {classes}. Top-1 error {record.top1_error:.2f} % on {record.evaluated_on}, reported by "
        f"{record.reported_by}."
    )


def sample_images() -> list[Path]:
    """Return the pictures that come with the library: one garment of each class, then photographs.

    A wheel has them inside the package, a checkout in its ``images``; [] if they are missing.
    """
    package = Path(__file__).parents[1]
    garments = next(package.glob("samples/fashion_mnist"), package.parent / "images" / "fashion_mnist")
    first = {path.stem.rsplit("-", 1)[0]: path for path in sorted(garments.glob("*.png"), reverse=True)}
    return [*sorted(first.values()), *sorted(garments.parent.glob("*.jpg"))]


@lru_cache(maxsize=2)
def _classifier(model: str, tag: str) -> Classifier:
    from PIL import Image

    classifier = Classifier(model, weights=tag)
    classifier.predict(Image.new("RGB", (64, 64)))  # what is imported and set up at first is not the model's time
    return classifier


def _open(path: Path) -> io.BytesIO:
    """Read a file into memory, so that messages give its name and not the server's folders."""

    class Named(io.BytesIO):
        name = path.name

    return Named(path.read_bytes())


def _enlarged(picture: Image.Image) -> Image.Image:
    """Repeat pixels until the picture is large enough to be looked at."""
    from PIL import Image

    times = -(-SHOWN // min(picture.size))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
