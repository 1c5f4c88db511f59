"""The demo page's HTML: the parts in ``page.html``, filled in."""

import base64
import functools
import io
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import torch
from PIL import Image

from .. import get_weights, load_image
from ..inference.gradcam import heat_map
from .choices import OWN, PACKAGED
from .texts import translate

SMALL = 64
"""Longest side in pixels of pictures whose pixels are shown as squares."""


def render(part: str, language: str, **values: Any) -> str:
    """Return a part of the page, a macro of ``page.html``, in a language."""
    return str(getattr(_page(), part)(functools.partial(translate, language), **values))


@functools.cache
def _page() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = "{:.1%}".format
    environment.globals |= {"data_url": _data_url, "load_image": load_image, "example_label": _example_label}
    environment.globals |= {"heat_map": heat_map, "scale": torch.linspace(0, 1, 128)[None]}
    environment.globals |= {"PACKAGED": PACKAGED, "SMALL": SMALL}
    return environment.get_template("page.html").module


def _example_label(say: Callable[[str], str], group: str, name: str) -> str:
    """Return what an example shows, which its folder or its file's name says."""
    if group == OWN:
        return name.partition("/")[0]
    classes = get_weights(*PACKAGED.split("/")).categories
    garments = {label.lower().replace(" ", "-").replace("/", "-"): label for label in classes}
    stem = PurePath(name).stem.rstrip("0123456789-")
    return say(garments.get(stem, stem))


def _data_url(picture: Image.Image, limit: int) -> str:
    """Return the picture, reduced to ``limit`` pixels, as a URL."""
    stored, picture = io.BytesIO(), picture.copy()
    picture.thumbnail((limit, limit))
    kind = "jpeg" if max(picture.size) > SMALL and picture.mode == "RGB" else "png"
    picture.save(stored, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(stored.getvalue()).decode()}"
