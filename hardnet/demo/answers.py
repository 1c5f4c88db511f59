"""Answer an order of the demo page: read and delete the uploads, load the weights, classify, return HTML."""

import contextlib
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from .. import ImageError, ImageResult, WeightsError
from ..images.read import decode_image
from ..inference.jobs import csv_header, csv_line
from ..utils.text import printable
from .choices import Choice
from .markup import render
from .texts import LANGUAGES, translate
from .view import load, look

logger = logging.getLogger(__name__)

TEMPORARY = "GRADIO_TEMP_DIR"
MAX_COUNT = 100
"""Largest number of pictures in one order."""
MAX_BYTES = 20 * 2**20
"""The largest file that may be uploaded; a request may have 64 KiB more."""


class Update(NamedTuple):
    """New content of parts of the page; None leaves a part as it is."""

    preview: str | None
    status: str
    result: str


class _File(NamedTuple):
    name: str
    path: Path | None
    failure: str = ""  # why the browser could not upload it: "large" or "refused"


class Order(NamedTuple):
    """Pictures that a visitor sends, and the model to classify them with."""

    language: str
    choice: Choice
    files: list[_File]
    is_example: bool
    opened: bool  # from a table


def parse_order(data: Any, choices: Mapping[str, Choice]) -> Order:
    """Check what a browser sent: an order, of files that were uploaded here. Any exception means that it is not."""
    choice, name = choices[data["choice"]], data.get("example")
    language = data["language"] if data["language"] in LANGUAGES else LANGUAGES[0]
    if name:
        examples = {name: path for other in choices.values() for name, path in other.examples.items()}
        files = [_File(examples[name].name, examples[name])]
    else:
        files = [_upload(*file) for file in data["files"][:MAX_COUNT]]
    return Order(language, choice, files, bool(name), bool(data.get("opened")))


def _upload(path: Any, name: Any, failure: Any) -> _File:
    if failure:
        return _File(str(name), None, "large" if failure == "large" else "refused")
    place = Path(path).resolve()
    if Path(os.environ[TEMPORARY]).resolve() not in place.parents:
        raise ValueError("only files that were uploaded here are read")
    return _File(str(name), place)


def answer(data: Any, choices: Mapping[str, Choice]) -> Iterator[Update]:
    """Yield the states of the page on the way to the result; the last one is the result or an error."""
    order = None
    try:
        order = parse_order(data, choices)
        if order.files:
            yield from _answer(order)
    except Exception:  # a visitor gets words, the log the reason
        logger.exception("an order failed")
        language = order.language if order else LANGUAGES[0]
        yield _problem(language, translate(language, "fault"), translate(language, "log"), again=True)
    finally:
        for file in order.files if order and not order.is_example else ():
            if file.path is not None:
                with contextlib.suppress(OSError):
                    file.path.unlink()
                    file.path.parent.rmdir()  # Gradio makes a folder for each upload


def _read(file: _File, language: str) -> tuple[Image.Image | None, str]:
    """Return the picture, or why there is none."""
    problem = file.failure
    try:
        if file.path is not None:
            with file.path.open("rb") as opened:
                return decode_image(opened, printable(file.name))[0], ""
    except ImageError as error:
        logger.info("%s", error)
        problem = "unreadable"
    except OSError:
        problem = "gone"
    return None, translate(language, problem, size=MAX_BYTES // 2**20)


def _answer(order: Order) -> Iterator[Update]:
    language, choice, count = order.language, order.choice, len(order.files)
    picture = None
    preview = render("preview_many", language, count=count)
    if count == 1:
        picture, problem = _read(order.files[0], language)
        if picture is None:
            yield _problem(language, problem, order.files[0].name, preview="")
            return
        preview = render("preview", language, picture=picture, name=order.files[0].name)
    yield Update(preview, "", render("loading", language, choice=choice, done=0, total=None))
    received = deque[tuple[int, int | None]]([(0, None)], maxlen=1)
    loading = load(choice, lambda done, total: received.append((done, total)))
    while not wait([loading], timeout=0.25).done:
        done, total = received[0]
        yield Update(None, "", render("loading", language, choice=choice, done=done, total=total))
    try:
        classifier = loading.result()
    except WeightsError as error:
        logger.warning("%s", error)
        title, why = translate(language, "no_weights", model=choice.name), translate(language, error.cause or "log")
        yield _problem(language, title, why, again=True, packaged=True)
        return
    if picture is not None:
        view = look(classifier, picture)
        status = render("heading", language, choice=choice, top=view.result.top)
        yield Update(None, status, render("result", language, view=view, picture=picture, choice=choice, order=order))
        return
    rows: list[tuple[ImageResult, Image.Image | None]] = []
    views = []
    for done, file in enumerate(order.files):
        yield Update(None, "", render("classifying", language, done=done, total=count))
        picture, problem = _read(file, language)
        if picture is None:
            rows.append((ImageResult(file.name, (), problem), None))
            continue
        views.append(look(classifier, picture, explain=False))
        picture.thumbnail((96, 96))  # as the table shows it
        rows.append((replace(views[-1].result, source=file.name), picture))
    csv = "\n".join([csv_header(), *(csv_line(result) for result, _ in rows), ""])
    table = render("table", language, rows=rows, views=views, choice=choice, csv=csv)
    yield Update(None, translate(language, "pictures", count=count), table)


def _problem(
    language: str, title: str, detail: str, *, again: bool = False, packaged: bool = False, preview: str | None = None
) -> Update:
    card = render("problem", language, title=title, detail=detail, again=again, packaged=packaged)
    return Update(preview, title, card)
