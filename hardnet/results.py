"""Results of Classifier and Extractor: plain values, as dictionaries and as HTML for notebooks."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .images.read import load_image
from .utils.errors import ImageError
from .utils.text import printable

_THUMBNAIL = 160
"""Pixels of the longer side."""


@dataclass(frozen=True)
class Prediction:
    """One class with its probability."""

    label: str
    """The name of the class."""
    index: int
    """Of the class, among the logits."""
    probability: float
    """From 0 to 1: the softmax over all classes."""
    source: str
    """The image: its path as given, or ``<image 3>``, ``<tensor 3>`` by its position among the results."""


@dataclass(frozen=True, repr=False)
class ImageResult:
    """The predictions for one image, the most probable first, or an error."""

    source: str
    """As in :class:`Prediction`."""
    predictions: tuple[Prediction, ...]
    """Of falling probability; empty where there is an error."""
    error: str | None = None
    """Why there are no predictions; it names the source."""

    @property
    def top(self) -> Prediction:
        """The most probable class.

        Raises:
            ImageError: the image could not be classified; the message is ``error``.
        """
        if not self.predictions:
            raise ImageError(self.error or f"{printable(self.source)}: there are no predictions")
        return self.predictions[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON: ``source`` and either ``predictions`` or ``error``."""
        if self.error is not None:
            return {"source": self.source, "error": self.error}
        predictions = [{"label": p.label, "index": p.index, "probability": p.probability} for p in self.predictions]
        return {"source": self.source, "predictions": predictions}

    def __repr__(self) -> str:
        found = ", ".join(f"{p.label} {p.probability:.1%}" for p in self.predictions)
        return f"ImageResult({self.source!r}: {self.error or found})"

    def _repr_html_(self) -> str:
        """Return a table for notebooks: the picture, if the source is a file, and a bar per class."""
        rows = "".join(
            f"<tr><td>{html.escape(p.label)}</td><td>{p.probability:.1%}</td><td style='width:12em'>"
            f"<div style='background:#4c78a8;height:0.8em;width:{100 * p.probability:.1f}%'></div></td></tr>"
            for p in self.predictions
        )
        text = html.escape(self.error or self.source)
        return f"<div>{_thumbnail(self.source)}<table><caption>{text}</caption>{rows}</table></div>"


@dataclass(frozen=True, eq=False)
class Embedding:
    """The vector of one image, or an error."""

    source: str
    """The image: its path as given, or ``<image 3>``, ``<tensor 3>`` by the position among the results."""
    vector: Tensor | None
    """(num_features,) in float32, on the CPU."""
    error: str | None = None
    """Why there is no vector; it names the source."""


def _thumbnail(source: str) -> str:
    try:
        picture = load_image(source)
    except ImageError:
        return ""
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stored = io.BytesIO()
    picture.save(stored, "PNG")
    return f"<img src='data:image/png;base64,{base64.b64encode(stored.getvalue()).decode()}'>"
