"""Compute what the demo page shows of a picture: the classes, their Grad-CAM maps on the picture, and times."""

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import cast

from PIL import Image
from torch import Tensor

from .. import Classifier, HarDNet, ImageResult, load_weights
from ..images.preprocess import Preprocessing
from ..inference.gradcam import activation_level, class_activations
from ..weights.download import Progress
from .choices import Choice

ENGINE = "eager"

_one_at_a_time = threading.Lock()
_classifiers: dict[str, Classifier] = {}  # those of the catalogue that have been chosen


@dataclass(frozen=True)
class View:
    """Content of the page for one picture."""

    result: ImageResult  # with the five most probable classes
    box: tuple[float, float, float, float]  # what the network gets, in parts of the picture: left, top, width, height
    maps: list[Tensor]  # Grad-CAM of each class on that part, (side, side) from 0 to 1
    side: int  # pixels of the network's input
    cells: int  # of a map along a side
    prepared: float  # milliseconds of resizing, cropping and normalising
    network: float  # milliseconds of the network
    device: str


def load(choice: Choice, progress: Progress) -> Future[Classifier]:
    """Load a model in a thread of its own, which does not keep the server from ending.

    ``progress`` is called with the bytes received and in total, None if unknown, while its weights are downloaded.
    """
    future: Future[Classifier] = Future()

    def work() -> None:
        try:
            future.set_result(_classifier(choice, progress))
        except Exception as error:  # the caller, who waits, gets it
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def look(classifier: Classifier, picture: Image.Image, *, explain: bool = True) -> View:
    """Classify a picture and compute the maps of its five most probable classes. Threads take turns."""
    network, transform = cast(HarDNet, classifier.model), cast(Preprocessing, classifier.transform)
    with _one_at_a_time:
        start = time.perf_counter()
        tensor = transform(picture)
        prepared = time.perf_counter()
        [result] = classifier.predict([tensor], topk=5)
        done = time.perf_counter()
        maps = class_activations(network, tensor, [p.index for p in result.predictions]) if explain else []
    (width, height), side = picture.size, transform.crop
    left, top, right, bottom = transform.crop_box(width, height)
    return View(
        result,
        (left / width, top / height, (right - left) / width, (bottom - top) / height),
        maps,
        side,
        side // activation_level(network, side, side).stride,
        1000 * (prepared - start),
        1000 * (done - prepared),
        classifier.device.type.upper(),
    )


def warm_up(classifier: Classifier) -> Classifier:
    """Classify twice, since what is imported and set up at first is not the model's time.

    Raises:
        TypeError, ValueError: the page cannot show this model.
    """
    for _ in range(2):
        look(classifier, Image.new("RGB", (64, 64)))
    return classifier


def _classifier(choice: Choice, progress: Progress) -> Classifier:
    if isinstance(choice.source, Classifier):
        return choice.source
    if choice.name not in _classifiers:
        loaded = load_weights(choice.source, progress=progress)
        _classifiers[choice.name] = warm_up(Classifier(loaded, engine=ENGINE))
    return _classifiers[choice.name]
