"""The demo page's HTML: the parts in ``page.html``, filled in, and the table as CSV."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import torch

from ..inference.gradcam import heat_map
from ..utils.text import csv_row
from ..weights.catalog import get_weights
from .choices import OWN, PACKAGED, Choice
from .texts import translate
from .view import ENGINE, PRECISION, View

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


def options(choices: Mapping[str, Choice], language: str) -> str:
    """Return the examples and the choice of model and weights."""
    groups = {choice.group: choice.examples for choice in choices.values()}
    examples = [(group, name, path) for group, paths in groups.items() for name, path in paths.items()]
    default = OWN if OWN in choices else PACKAGED
    return render("options", language, examples=examples, choices=choices, groups=list(groups), default=default)


def table(language: str, rows: Sequence[Row], choice: Choice) -> str:
    """Return the results of several pictures, with a link that saves them as CSV."""
    return render("table", language, rows=rows, choice=choice, csv=quote(to_csv(rows)))


def to_csv(rows: Sequence[Row]) -> str:
    """Return one line per picture: file, the five classes with their probabilities, or an error."""
    names = [f"{key}_{rank}" for rank in range(1, 6) for key in ("class", "probability")]
    lines = [csv_row("file", *names, "error")]
    for row in rows:
        predictions = row.view.result.predictions if row.view else ()
        cells = [cell for p in predictions for cell in (p.label, f"{p.probability:.6f}")]
        lines.append(csv_row(row.name, *cells, *[""] * (len(names) - len(cells)), row.error))
    return "".join(f"{line}\r\n" for line in lines)


@functools.cache
def _page() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = "{:.1%}".format
    environment.globals |= {"image": _image, "heat_map": heat_map, "colours": _colours, "thumbnail": _thumbnail}
    environment.globals |= {"engine": ENGINE, "precision": PRECISION, "PACKAGED": PACKAGED}
    environment.globals["example_label"] = _example_label
    return environment.get_template("page.html").module


def _example_label(say: Callable[[str], str], group: str, name: str) -> str:
    """Return what an example shows, which its folder or its file's name says."""
    if group == OWN:
        return name.partition("/")[0]
    classes = get_weights(*PACKAGED.split("/")).categories
    garments = {label.lower().replace(" ", "-").replace("/", "-"): label for label in classes}
    stem = PurePath(name).stem.rstrip("0123456789-")
    return say(garments.get(stem, stem))


def _thumbnail(path: Path, label: str) -> Markup:
    from PIL import Image

    with Image.open(path) as file:
        return _image(file.convert("RGB"), label, limit=192)


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
