"""The demo page's HTML: the parts in ``page.html``, filled in, and the table as CSV."""

from __future__ import annotations

import base64
import csv
import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import torch

from ..inference.gradcam import heat_map
from ..weights.catalog import PACKAGE, WeightsRecord, get_weights, list_models, list_weights
from .texts import translate
from .view import ENGINE, PRECISION, View, sample_images

if TYPE_CHECKING:
    from markupsafe import Markup
    from PIL import Image

SMALL = 64
"""Longest side in pixels of pictures whose pixels are shown as squares."""


class Row(NamedTuple):
    """One picture of a table."""

    name: str
    picture: Image.Image | None
    view: View | None
    error: str


def render(part: str, language: str, **values: Any) -> str:
    """Return a part of the page, a macro of ``page.html``, in a language."""
    return str(getattr(_page(), part)(functools.partial(translate, language), **values))


def options(language: str) -> str:
    """Return the examples and the choice of model and weights."""
    records = [get_weights(model, tag) for model in list_models() for tag in list_weights(model)]
    groups = {
        "garments": [record for record in records if _is_packaged(record)],
        "things": [record for record in records if not _is_packaged(record)],
    }
    return render("options", language, examples=_examples(), groups=groups)


def table(language: str, rows: Sequence[Row], record: WeightsRecord) -> str:
    """Return the results of several pictures, with a link that saves them as CSV."""
    return render("table", language, rows=rows, record=record, csv=quote(to_csv(rows)))


def to_csv(rows: Sequence[Row]) -> str:
    """Return one line per picture: file, the five classes with their probabilities, or an error."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    names = [f"{key}_{rank}" for rank in range(1, 6) for key in ("class", "probability")]
    writer.writerow(["file", *names, "error"])
    for row in rows:
        found = [x for p in row.view.result.predictions for x in (p.label, f"{p.probability:.6f}")] if row.view else []
        writer.writerow([row.name, *found, *[""] * (len(names) - len(found)), row.error])
    return text.getvalue()


def display_name(model: str) -> str:
    """Return the name of a model as the paper writes it."""
    return model.replace("hardnet", "HarDNet-").replace("ds", "DS")


@functools.cache
def _page() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = "{:.1%}".format
    environment.globals |= {"image": _image, "heat_map": heat_map, "colours": _colours, "display_name": display_name}
    environment.globals |= {"is_packaged": _is_packaged, "engine": ENGINE, "precision": PRECISION}
    return environment.get_template("page.html").module


def _examples() -> Iterator[tuple[str, str, str, Image.Image]]:
    """The name, label, kind and picture of each example."""
    from PIL import Image

    for name, path in sample_images().items():
        label = path.stem.rstrip("0123456789-").replace("-", " ")
        with Image.open(path) as file:
            yield name, label, "garments" if path.suffix == ".png" else "things", file.convert("RGB")


def _colours() -> Image.Image:
    """The colours of a map, from none to most."""
    return heat_map(torch.linspace(0, 1, 128)[None])


def _image(picture: Image.Image, alt: str, *, limit: int = 0, number: int | None = None) -> Markup:
    """Return an img element with the picture, reduced to ``limit`` pixels; with ``number``, that of a map."""
    from markupsafe import Markup

    stored, kind, options = io.BytesIO(), "png", dict[str, Any]()
    if limit and max(picture.size) > limit:
        picture = picture.copy()
        picture.thumbnail((limit, limit))
    if max(picture.size) > SMALL and picture.mode == "RGB":
        kind, options = "jpeg", {"quality": 90}
    picture.save(stored, kind, **options)
    name = "map" if number is not None else "pixels" if max(picture.size) <= SMALL else ""
    content = base64.b64encode(stored.getvalue()).decode()
    image = "<img alt='{}' class='{}' data-map='{}' src='data:image/{};base64,{}'>"
    return Markup(image).format(alt, name, "" if number is None else number, kind, content)  # noqa: S704


def _is_packaged(record: WeightsRecord) -> bool:
    return any(source.url.startswith(PACKAGE) for source in record.sources)
