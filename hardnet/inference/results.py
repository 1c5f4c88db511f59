"""Results of Classifier and Extractor: plain values, as dictionaries, data frames and HTML for notebooks."""

from __future__ import annotations

import base64
import html
import importlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..images.read import load_image
from ..utils.errors import ImageError
from ..utils.optional import require
from ..utils.text import printable

if TYPE_CHECKING:
    from PIL import Image

_SIDE = 160  # pixels of the longer side of a picture in a notebook
_MAX_SHOWN = 40  # images of a list of results in a notebook


@dataclass(frozen=True)
class Prediction:
    """One class with its probability."""

    label: str
    index: int
    """Index of the class in the logits."""
    probability: float
    """Softmax over all classes, from 0 to 1."""
    source: str
    """The image: its path as given, or ``<image 3>``, ``<tensor 3>`` by its position among the results."""


@dataclass(frozen=True, repr=False)
class ImageResult:
    """The predictions for one image, the most probable first, or an error."""

    source: str
    """The image: its path as given, or ``<image 3>`` by its position among the results."""
    predictions: tuple[Prediction, ...]
    """Most probable first; empty if ``error`` is set."""
    error: str | None = None
    """Reason that there are no predictions; it names the source."""

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
        classes = ", ".join(f"{p.label} {p.probability:.1%}" for p in self.predictions)
        return f"ImageResult({self.source!r}: {self.error or classes})"

    def _repr_html_(self) -> str:
        """Return a table for notebooks: the picture, if the source is a file, and a bar per class."""
        try:
            pictures = [load_image(self.source, least_side=2 * _SIDE)]
        except ImageError:
            pictures = []
        return result_html(self, pictures)


class Results(list[ImageResult]):
    """Results of several images: a list that shows their pictures and classes in a notebook."""

    def _repr_html_(self) -> str:
        """Return the pictures and predictions of the first 40 images."""
        tables = "".join(result._repr_html_() for result in self[:_MAX_SHOWN])
        rest = f"<p>... and {len(self) - _MAX_SHOWN} more</p>" if len(self) > _MAX_SHOWN else ""
        return f"<div style='display:flex;flex-wrap:wrap;gap:12px;align-items:flex-end'>{tables}</div>{rest}"


def data_frame(results: Iterable[ImageResult]) -> Any:
    """Return a ``pandas.DataFrame`` of many results: one row per prediction, and one per image without predictions.

    Its columns are ``source``, ``rank`` (from 1), ``label``, ``index``, ``probability`` and ``error``.

    Raises:
        ImportError: pandas is not installed.
    """
    pandas = require("pandas", "2.2", extra="notebook")
    rows: list[tuple[object, ...]] = []
    for result in results:
        rows += [(result.source, n, p.label, p.index, p.probability, None) for n, p in enumerate(result.predictions, 1)]
        if not result.predictions:
            rows.append((result.source, None, None, None, None, result.error))
    frame = pandas.DataFrame(rows, columns=["source", "rank", "label", "index", "probability", "error"])
    return frame.astype({"rank": "Int64", "index": "Int64", "probability": "float64"})


def result_html(result: ImageResult, pictures: Iterable[Image.Image], caption: str = "") -> str:
    """Return a row of pictures above a table of the predictions with bars, for notebooks."""
    rows = "".join(
        f"<tr><td>{html.escape(p.label)}</td><td>{p.probability:.1%}</td><td style='width:12em'>"
        f"<div style='background:#4c78a8;height:0.8em;width:{p.probability:.1%}'></div></td></tr>"
        for p in result.predictions
    )
    text = html.escape(caption or result.error or result.source)
    return f"<div>{''.join(map(inline_image, pictures))}<table><caption>{text}</caption>{rows}</table></div>"


@dataclass(frozen=True, eq=False)
class Embedding:
    """The vector of one image, or an error."""

    source: str
    """The image: its path as given, or ``<image 3>`` by its position among the results."""
    vector: Tensor | None
    """(num_features,) in float32, on the CPU."""
    error: str | None = None
    """Reason that there is no vector; it names the source."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON: ``source`` and either ``embedding``, a list of numbers, or ``error``.

        The numbers have nine digits, from which float32 values are restored exactly.
        """
        if self.vector is None:
            return {"source": self.source, "error": self.error}
        return {"source": self.source, "embedding": [float(f"{value:.9g}") for value in self.vector.tolist()]}


def arrow_schema(value: str) -> Any:
    """Return the Arrow schema of the results: source, "predictions" or "embedding", error."""
    pa = importlib.import_module("pyarrow")
    prediction = pa.struct([("label", pa.string()), ("index", pa.int32()), ("probability", pa.float32())])
    element = {"predictions": prediction, "embedding": pa.float32()}[value]
    return pa.schema([("source", pa.string()), (value, pa.list_(element)), ("error", pa.string())])


def inline_image(picture: Image.Image, side: int = _SIDE) -> str:
    """Return a picture as HTML, its longer side shown in ``side`` pixels."""
    stored = io.BytesIO()
    width = round(side * picture.width / max(picture.size))
    small = picture.copy()
    small.thumbnail((2 * side, 2 * side))  # for screens of high density
    form = "PNG" if max(small.size) <= side else "JPEG"
    small.save(stored, form)
    data = base64.b64encode(stored.getvalue()).decode()
    return (
        f"<img alt='' width='{width}' style='display:inline;margin:2px' src='data:image/{form.lower()};base64,{data}'>"
    )
