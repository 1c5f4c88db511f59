"""The demo page's HTML: header, drop field, options, and the states of the result."""

from __future__ import annotations

import base64
import csv
import functools
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import torch

from ..explain import overlay
from ..factory import get_weights, list_models, list_weights
from ..weights.catalog import PACKAGE, WeightsRecord
from .texts import translate
from .view import ENGINE, PRECISION, View, sample_images

if TYPE_CHECKING:
    from PIL import Image

DEFAULT = "hardnet39ds/FASHION_MNIST"
PAPER, REPOSITORY = "https://arxiv.org/abs/1909.00948", "https://github.com/OWNER/REPOSITORY"
PREVIEW, THUMBNAIL, SMALL = 640, 96, 64
"""Longest sides in pixels: of the preview, of a thumbnail, and of pictures whose pixels are shown as squares."""

# Layer 8 of a HarDBlock takes the outputs of the layers 7, 6, 4 and 0.
_LOGO = (
    "<svg viewBox='0 0 92 34' aria-hidden='true'>"
    + "".join(f"<path d='M{6 + 10 * k} 27 A{(8 - k) * 5} {(8 - k) * 2.9} 0 0 1 86 27'/>" for k in (7, 6, 4, 0))
    + "".join(f"<circle cx='{6 + 10 * k}' cy='27' r='{4 if k in (8, 7, 6, 4, 0) else 2}'/>" for k in range(9))
    + "</svg>"
)


class Row(NamedTuple):
    """One picture of a table."""

    name: str
    picture: Image.Image | None
    view: View | None
    error: str


def header(language: str) -> str:
    """Return the title, one sentence and the links."""
    links = {"paper": PAPER, "repository": REPOSITORY, "licence": f"{REPOSITORY}/blob/main/LICENSE"}
    entries = "".join(f"<a href='{url}'>{translate(language, key)}</a>" for key, url in links.items())
    return (
        f"<header>{_LOGO}<div><h1>HarDNet</h1><p>{translate(language, 'sentence')}</p></div>"
        f"<nav aria-label='{translate(language, 'links')}'>{entries}</nav></header>"
    )


def prompt(language: str, max_bytes: int, max_count: int) -> str:
    """Return the content of the empty drop field."""
    limits = translate(language, "limits", size=max_bytes // 2**20, count=max_count)
    return (
        f"<span class='prompt'><b>{translate(language, 'drop')}</b><span>{translate(language, 'choose_files')}</span>"
        f"<small>{limits}</small></span>"
    )


def preview(language: str, picture: Image.Image, name: str) -> str:
    """Return the content of the drop field with one picture in it."""
    size = translate(language, "pixels", width=picture.width, height=picture.height)
    image = _image(picture, translate(language, "yours"), limit=PREVIEW)
    return f"{image}<small><span>{html.escape(name)}</span> · {size} · <u>{translate(language, 'another')}</u></small>"


def preview_many(language: str, count: int) -> str:
    """Return the content of the drop field with several pictures in it."""
    return (
        f"<span class='prompt'><b>{translate(language, 'pictures', count=count)}</b>"
        f"<u>{translate(language, 'another')}</u></span>"
    )


def options(language: str) -> str:
    """Return the examples and the choice of model and weights."""
    groups: dict[str, list[str]] = {"garments": [], "things": []}
    for record in (get_weights(model, tag) for model in list_models() for tag in list_weights(model)):
        value = f"{record.model}/{record.tag}"
        who = {"data": record.evaluated_on, "who": record.reported_by}
        about = html.escape(translate(language, "about", error=record.top1_error, **who), quote=True)
        groups["garments" if _is_packaged(record) else "things"].append(
            f"<option value='{value}' data-about='{about}'{' selected' if value == DEFAULT else ''}>"
            f"{display_name(record.model)}, {record.tag}</option>"
        )
    choices = "".join(f"<optgroup label='{translate(language, k)}'>{''.join(v)}</optgroup>" for k, v in groups.items())
    return (
        f"<h2>{translate(language, 'examples')}</h2><div class='examples'>{_examples()}</div>"
        f"<label><b>{translate(language, 'choice')}</b><select id='choice'>{choices}</select></label><p id='about'></p>"
    )


def empty(language: str) -> str:
    """Return the result before there is any."""
    return (
        f"<aside class='card empty'>{_LOGO}<b>{translate(language, 'empty')}</b>"
        f"<p>{translate(language, 'empty_more')}</p></aside>"
    )


def loading(language: str, model: str, done: int, total: int | None) -> str:
    """Return the state while weights are loaded: bytes that came and that will come."""
    title = translate(language, "loading", model=display_name(model))
    text = translate(language, "loading_more")
    if done and total:
        text = translate(language, "downloaded", done=done / 1e6, total=total / 1e6)
    return _waiting(title, text, done, total if done else None)


def classifying(language: str, done: int, total: int) -> str:
    """Return the state while a list of pictures is classified."""
    text = translate(language, "progress", done=done, total=total)
    return _waiting(translate(language, "classifying"), text, done, total)


def problem(language: str, title: str, detail: str, *, again: bool = False) -> str:
    """Return an error: what is wrong, a detail, and a button for another attempt."""
    button = f"<button type='button' data-again>{translate(language, 'again')}</button>" if again else ""
    return (
        f"<section class='card problem' role='alert'><h2>{html.escape(title)}</h2><p>{html.escape(detail)}</p>{button}"
        "</section>"
    )


def result(language: str, view: View, record: WeightsRecord, *, is_example: bool) -> str:
    """Return the result for one picture: classes to choose from, and the map of the chosen one."""
    say = functools.partial(translate, language)
    top, side = view.result.top, view.seen.width
    classes = "".join(
        f"<label><input type='radio' name='class' value='{number}'{' checked' if number == 0 else ''}>"
        f"<span lang='en'>{html.escape(p.label)}</span><span>{p.probability:.1%}</span>"
        f"<i style='--share: {p.probability:.4f}'></i></label>"
        for number, p in enumerate(view.result.predictions)
    )
    maps = "".join(
        _image(overlay(view.seen, each, 1.0), say("map", label=p.label), more=f"class='map' data-map='{number}'")
        for number, (p, each) in enumerate(zip(view.result.predictions, view.maps, strict=True))
    )
    facts = say(
        "facts", engine=ENGINE, precision=PRECISION, device=view.device, network=view.network, prepared=view.prepared
    )
    return (
        f"<section class='card result'><h2><span lang='en'>{html.escape(top.label)}</span> {top.probability:.1%}</h2>"
        f"{'' if is_example or not _is_packaged(record) else only_garments(language)}"
        f"<div class='both'><fieldset><legend>{say('classes')}</legend>{classes}</fieldset>"
        f"<figure><div class='stack'>{_image(view.seen, say('seen', side=side))}{maps}</div>"
        f"<figcaption><div class='legend'><span>{say('none')}</span>{_colours()}<span>{say('most')}</span></div>"
        f"<label>{say('opacity')}<input type='range' max='1' step='0.01' value='0.55' "
        "oninput=\"this.closest('figure').style.setProperty('--fade', value)\"></label></figcaption></figure>"
        f"</div><p>{say('resolution', stride=view.stride, cells=side // view.stride)}</p>"
        f"<p class='facts'><span lang='en'>{display_name(record.model)} {record.tag}</span>: {facts}</p></section>"
    )


def only_garments(language: str) -> str:
    """Return the note that the packaged weights know ten garments only, with a button for other weights."""
    button = f"<button type='button' data-choose='hardnet39ds/IMAGENET1K_V1'>{translate(language, 'switch')}</button>"
    return f"<p class='note'>{translate(language, 'only')} {button}</p>"


def table(language: str, rows: Sequence[Row], record: WeightsRecord) -> str:
    """Return the results of several pictures, with a link that saves them as CSV."""
    views = [row.view for row in rows if row.view]
    title = translate(language, "pictures", count=len(rows))
    facts = ""
    if views:
        facts = translate(
            language,
            "table",
            count=len(views),
            model=f"{display_name(record.model)} {record.tag}",
            network=sum(view.network for view in views) / len(views),
            engine=ENGINE,
            precision=PRECISION,
            device=views[0].device,
        )
    head = "".join(f"<th scope='col'>{translate(language, key)}</th>" for key in ("picture", "class", "probability"))
    return (
        f"<section class='card table'><h2>{title}</h2>{only_garments(language) if _is_packaged(record) else ''}"
        f"<a download='hardnet.csv' href='data:text/csv;charset=utf-8,{quote(to_csv(rows))}'>"
        f"{translate(language, 'csv')}</a><div class='scroll' tabindex='0' role='region' aria-label='{title}'><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(map(_table_row, rows))}</tbody></table></div>"
        f"<p class='facts'>{facts}</p></section>"
    )


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


def _table_row(row: Row) -> str:
    thumbnail = "" if row.picture is None else _image(row.picture, "", limit=THUMBNAIL)
    name = f"<th scope='row'><span>{thumbnail}<span>{html.escape(row.name)}</span></span></th>"
    if row.view is None:
        return f"<tr class='bad'>{name}<td colspan='2'>{html.escape(row.error)}</td></tr>"
    top = row.view.result.top
    return f"<tr>{name}<td lang='en'>{html.escape(top.label)}</td><td>{top.probability:.1%}</td></tr>"


def _waiting(title: str, text: str, done: int, total: int | None) -> str:
    progress = f" max='{total}' value='{done}'" if total else ""
    return (
        f"<div class='card waiting'><h2>{title}</h2><progress aria-label='{title}'{progress}></progress>"
        f"<p>{text}</p></div>"
    )


def _examples() -> str:
    from PIL import Image

    buttons = []
    for name, path in sample_images().items():
        kind = "garments" if path.suffix == ".png" else "things"
        label = Path(name).stem.rstrip("0123456789-").replace("-", " ")
        with Image.open(path) as file:
            image = _image(file.convert("RGB"), label, limit=2 * THUMBNAIL)
        buttons.append(f"<button type='button' lang='en' data-example='{name}' data-kind='{kind}'>{image}</button>")
    return "".join(buttons)


@functools.cache
def _colours() -> str:
    from PIL import Image

    ramp = torch.linspace(0, 1, 128)[None]
    return _image(overlay(Image.new("RGB", (128, 1)), ramp, 1.0), "")


def _image(picture: Image.Image, alt: str, *, limit: int = 0, more: str = "") -> str:
    """Return an img element that contains the picture, reduced to ``limit`` pixels."""
    stored, kind, options = io.BytesIO(), "png", dict[str, Any]()
    if limit and max(picture.size) > limit:
        picture = picture.copy()
        picture.thumbnail((limit, limit))
    if max(picture.size) > SMALL and picture.height > 1:
        kind, options = "jpeg", {"quality": 90}
    picture.save(stored, kind, **options)
    if not more:
        more = "class='pixels'" if max(picture.size) <= SMALL else ""
    content = base64.b64encode(stored.getvalue()).decode()
    return f"<img alt='{html.escape(alt, quote=True)}' {more} src='data:image/{kind};base64,{content}'>"


def _is_packaged(record: WeightsRecord) -> bool:
    return any(source.url.startswith(PACKAGE) for source in record.sources)


def display_name(model: str) -> str:
    """Return the name of a model as the paper writes it."""
    return model.replace("hardnet", "HarDNet-").replace("ds", "DS")
