"""Answer an order of the demo page: read and delete the uploads, load the weights, classify, return HTML."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..images.read import decode_image
from ..utils.errors import ImageError, WeightsError
from ..utils.text import printable
from .choices import Choice
from .markup import Row, render, table
from .texts import LANGUAGES, translate
from .view import load, look

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

TEMPORARY = "GRADIO_TEMP_DIR"
MAX_COUNT = 100
"""Largest number of pictures in one order."""


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
    """Check what a browser sent: an order, of files that were uploaded here."""
    try:
        choice, name = choices[data["choice"]], data.get("example")
        language = data["language"] if data["language"] in LANGUAGES else LANGUAGES[0]
        if name:
            examples = {name: path for other in choices.values() for name, path in other.examples.items()}
            files = [_File(examples[name].name, examples[name])]
        else:
            files = [_upload(*file) for file in data["files"][:MAX_COUNT]]
        return Order(language, choice, files, bool(name), bool(data.get("opened")))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the order is malformed: {error!r}") from None


def _upload(path: Any, name: Any, failure: Any) -> _File:
    if failure:
        return _File(str(name), None, "large" if failure == "large" else "refused")
    place = Path(path).resolve()
    if Path(os.environ[TEMPORARY]).resolve() not in place.parents:
        raise ValueError("only files that were uploaded here are read")
    return _File(str(name), place)


def answer(data: Any, choices: Mapping[str, Choice], max_bytes: int) -> Iterator[Update]:
    """Yield the states of the page on the way to the result; the last one is the result or an error."""
    order = None
    try:
        order = parse_order(data, choices)
        if order.files:
            yield from _answer(order, max_bytes)
    except Exception:  # a visitor gets words, the log the reason
        logger.exception("an order failed")
        language = order.language if order else LANGUAGES[0]
        yield _problem(language, "fault", translate(language, "log"), again=True)
    finally:
        for file in order.files if order and not order.is_example else ():
            if file.path is not None:
                with contextlib.suppress(OSError):
                    file.path.unlink()
                    file.path.parent.rmdir()  # Gradio makes a folder for each upload


def _read(file: _File) -> tuple[Image.Image | None, str]:
    """Return the picture, or the key of why there is none."""
    try:
        if file.path is None:
            return None, file.failure
        with file.path.open("rb") as opened:
            return decode_image(opened, printable(file.name))[0], ""
    except ImageError as error:
        logger.info("%s", error)
        return None, "unreadable"
    except OSError:
        return None, "gone"


def _answer(order: Order, max_bytes: int) -> Iterator[Update]:
    language, choice, count = order.language, order.choice, len(order.files)
    picture = None
    preview = render("preview_many", language, count=count)
    if count == 1:
        picture, error = _read(order.files[0])
        if picture is None:
            yield _problem(language, error, order.files[0].name, preview="", size=max_bytes // 2**20)
            return
        preview = render("preview", language, picture=picture, name=order.files[0].name)
    yield Update(preview, "", render("loading", language, choice=choice, done=0, total=None))
    received: tuple[int, int | None] = (0, None)

    def watch(done: int, total: int | None) -> None:
        nonlocal received
        received = done, total

    loading = load(choice, watch)
    while not wait([loading], timeout=0.25).done:
        yield Update(None, "", render("loading", language, choice=choice, done=received[0], total=received[1]))
    try:
        classifier = loading.result()
    except WeightsError as caught:
        logger.warning("%s", caught)
        why = translate(language, caught.cause or "log")
        yield _problem(language, "no_weights", why, again=True, packaged=True, model=choice.name)
        return
    if picture is not None:
        view = look(classifier, picture)
        status = render("heading", language, choice=choice, top=view.result.top)
        yield Update(None, status, render("result", language, view=view, choice=choice, order=order))
        return
    rows = []
    for done, file in enumerate(order.files):
        yield Update(None, "", render("classifying", language, done=done, total=count))
        picture, error = _read(file)
        view_or_none = None if picture is None else look(classifier, picture, explain=False)
        if picture is not None:
            picture.thumbnail((96, 96))  # as the table shows it
        why = translate(language, error, size=max_bytes // 2**20) if error else ""
        rows.append(Row(file.name, picture, view_or_none, why))
    yield Update(None, translate(language, "pictures", count=count), table(language, rows, choice))


def _problem(
    language: str, key: str, detail: str, *, again: bool = False, packaged: bool = False, preview: str | None = None,
    **values: object,
) -> Update:  # fmt: skip
    title = translate(language, key, **values)
    card = render("problem", language, title=title, detail=detail, again=again, packaged=packaged)
    return Update(preview, title, card)
