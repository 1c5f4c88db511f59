"""Segment images: the class of every pixel."""

from __future__ import annotations

import colorsys
import html
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..images.batches import ImageLike, Item
from ..images.preprocess import Preprocessing
from ..images.read import load_image
from ..utils.errors import ImageError
from ..weights.cityscapes import CITYSCAPES
from .classifier import LabellingRunner
from .results import inline_image

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """The class of every pixel of one image, or an error. Other attributes raise ImageError if ``error`` is set."""

    source: str
    """The image: its path as given, or ``<image 3>``, ``<tensor 3>`` by its position among the results."""
    classes: Tensor | None
    """Index of the class of each pixel: uint8 (H, W), the size of the prepared picture; None if ``error`` is set."""
    labels: tuple[str, ...]
    error: str | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Share of the pixels of each class that occurs, from 0 to 1, the largest first."""
        counts = self._map().flatten().bincount(minlength=len(self.labels))
        order = counts.argsort(descending=True, stable=True)[: counts.count_nonzero()].tolist()
        return {self.labels[index]: round(int(counts[index]) / self._map().numel(), 6) for index in order}

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON: ``source`` and either ``shares`` or ``error``."""
        return {"source": self.source} | ({"shares": self.shares} if self.error is None else {"error": self.error})

    def to_image(self) -> Image.Image:
        """Return the map as a picture in mode P: its values are the indices, its palette the colours of the classes."""
        from PIL import Image

        picture = Image.fromarray(self._map().numpy()).convert("P")
        picture.putpalette([value for index, label in enumerate(self.labels) for value in colour_of(label, index)])
        return picture

    def overlay(self, picture: Image.Image | None = None, opacity: float = 0.5) -> Image.Image:
        """Return the colours of the classes over a picture of the map's size; None reads the source's file."""
        from PIL import Image

        colours, picture = self.to_image().convert("RGB"), picture or load_image(self.source)
        return Image.blend(picture.convert("RGB"), colours, opacity)

    def summary(self) -> str:
        """Return the three largest classes with their shares, as text; the error if there is one."""
        return self.error or ", ".join(f"{label} {share:.1%}" for label, share in [*self.shares.items()][:3])

    def __repr__(self) -> str:
        return f"Segmentation({self.source!r}: {self.summary()})"

    def _repr_html_(self) -> str:
        """Return the overlay, or the map if there is no file, and the legend, for notebooks."""
        if self.error is not None:
            return f"<p>{html.escape(self.error)}</p>"
        try:
            picture = self.overlay()
        except (ImageError, ValueError):
            picture = self.to_image().convert("RGB")
        legend = ""
        for label, share in self.shares.items():
            colour = colour_of(label, self.labels.index(label))
            legend += f"<span style='border-left:1em solid rgb{colour}'>&nbsp;{html.escape(label)} {share:.1%}</span> "
        return f"<figure>{inline_image(picture, 480)}<figcaption>{legend}</figcaption></figure>"

    def _map(self) -> Tensor:
        if self.classes is None:
            raise ImageError(self.error or "there is no map")
        return self.classes


def colour_of(label: str, index: int) -> tuple[int, ...]:
    """Return the RGB colour of a class: Cityscapes' if the label is one of its classes, else one by the index."""
    hue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.45 + 0.45 * (index % 2), 0.9)
    return CITYSCAPES.get(label) or tuple(round(255 * value) for value in hue)


class Segmenter(LabellingRunner):
    """Segments files, folders, Pillow images, NumPy arrays and tensors.

    Args:
        model: "fchardnet70"; a file of its weights; or a module that turns (N, 3, H, W) into (N, classes, H, W) logits.
        weights: with a name, the path of a file; None leaves the weights random.
        transform: Pillow image -> float tensor (channels, H, W), which decides the size of the map. None takes
            ``model.preprocessing``, or else the whole picture, RGB with ImageNet's statistics.
        labels, device, engine, precision, calibration, decode: as for :class:`Classifier`.

    Raises:
        ValueError, TypeError, ImportError, ImageError, WeightsError: as for :class:`Classifier`.
    """

    def _default_transform(self) -> Preprocessing:
        logger.warning("the preprocessing of the weights is unknown: RGB with ImageNet's statistics is taken")
        return Preprocessing(resize=0, crop=0)

    def predict(self, images: ImageLike | Iterable[ImageLike], batch_size: int = 1) -> list[Segmentation]:
        """Segment and return one result per image, in the order of the input; see :meth:`stream`."""
        return list(self.stream(images, batch_size))

    __call__ = predict

    def stream(self, images: ImageLike | Iterable[ImageLike | Item], batch_size: int = 1) -> Iterator[Segmentation]:
        """Segment lazily, in bounded memory; arguments and errors are those of :meth:`hardnet.Classifier.stream`."""
        rows = self._rows(images, batch_size)
        return (Segmentation(source, classes, self.labels or (), error) for source, classes, error in rows)

    def _output(self, run: Callable[[Tensor], object], images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, channels, H, W) -> classes, uint8 (N, H, W), and whether the logits are finite, (N,), on the CPU."""
        with torch.inference_mode():
            logits = run(images.to(self.device))
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else ()
            right_shape = shape == (len(images), *shape[1:2], *images.shape[2:]) and shape[1] <= 256
            if not isinstance(logits, Tensor) or not right_shape:
                result = f"for {tuple(images.shape)}, got {shape or type(logits).__name__}"
                raise ValueError(f"the model must return (N, up to 256 classes, H, W) {result}")
            self.labels = self._labels_for(shape[1])
            best, classes = logits.max(1)  # NaN if one of them is
            return classes.to("cpu", torch.uint8), best.isfinite().flatten(1).all(1).cpu()
