"""Answer an order of the demo page: read and delete the uploads, load the weights, classify, return HTML."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..images.read import decode_image
from ..inference.classifier import Classifier
from ..utils.errors import ImageError, WeightsError
from ..utils.text import printable
from ..weights.catalog import WeightsRecord, get_weights
from .markup import Row, display_name, render, table
from .texts import LANGUAGES, translate
from .view import load, look, sample_images

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

TEMPORARY = "GRADIO_TEMP_DIR"
MAX_COUNT = 100
"""How many pictures may be classified at once."""


class Update(NamedTuple):
    """What changes on the page; None leaves a part as it is."""

    preview: str | None
    status: str
    result: str


class _File(NamedTuple):
    name: str
    path: Path | None
    failure: str = ""
    """Why the browser could not upload it: "large" or "refused"."""


@dataclass(frozen=True)
class Order:
    """What a visitor wants to be classified."""

    language: str
    record: WeightsRecord
    files: tuple[_File, ...]
    is_example: bool

    @classmethod
    def parse(cls, data: Any) -> Order:
        """Check what a browser sent.

        Raises:
            ValueError: it is not an order, or names a file that was not uploaded here.
        """
        try:
            model, _, tag = data["choice"].partition("/")
            language = data["language"] if data["language"] in LANGUAGES else LANGUAGES[0]
            if data.get("example"):
                example = sample_images()[data["example"]]
                files = [_File(example.name, example)]
            else:
                files = [_upload(*each) for each in data["files"][:MAX_COUNT]]
            return cls(language, get_weights(model, tag), tuple(files), bool(data.get("example")))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"the order is malformed: {error!r}") from None


def _upload(path: Any, name: Any, failure: Any) -> _File:
    if failure:
        return _File(str(name), None, "large" if failure == "large" else "refused")
    folder = Path(os.environ[TEMPORARY]).resolve()
    place = Path(path).resolve()
    if folder not in place.parents:
        raise ValueError("only files that were uploaded here are read")
    return _File(str(name), place)


def answer(data: Any, max_bytes: int) -> Iterator[Update]:
    """Yield the states of the page on the way to the result; the last one is the result or an error."""
    language = LANGUAGES[0]
    order = None
    try:
        order = Order.parse(data)
        language = order.language
        if order.files:
            yield from _answer(order, max_bytes)
    except Exception:  # a visitor gets words, the log the reason
        logger.exception("an order failed")
        yield _problem(language, translate(language, "fault"), translate(language, "log"), again=True)
    finally:
        for file in order.files if order and not order.is_example else ():
            if file.path is not None:
                with contextlib.suppress(OSError):
                    file.path.unlink()
                    file.path.parent.rmdir()  # Gradio makes a folder for each upload


def _answer(order: Order, max_bytes: int) -> Iterator[Update]:
    language, record, count = order.language, order.record, len(order.files)

    def read(file: _File) -> tuple[Image.Image | None, str]:
        try:
            if file.path is None:
                return None, translate(language, file.failure, size=max_bytes // 2**20)
            with file.path.open("rb") as opened:
                return decode_image(opened, printable(file.name))[0], ""
        except ImageError as error:
            return None, str(error)
        except OSError:
            return None, translate(language, "gone")

    picture = None
    preview = render("preview_many", language, count=count)
    if count == 1:
        picture, error = read(order.files[0])
        if picture is None:
            yield _problem(language, translate(language, "unreadable"), error, preview="")
            return
        preview = render("preview", language, picture=picture, name=order.files[0].name)
    yield Update(preview, "", render("loading", language, model=record.model, done=0, total=None))
    loading = load(record.model, record.tag)
    try:
        while True:
            done, total = next(loading)
            yield Update(None, "", render("loading", language, model=record.model, done=done, total=total))
    except StopIteration as stop:
        classifier: Classifier = stop.value
    except WeightsError as caught:
        logger.warning("%s", caught)
        title = translate(language, "no_weights", model=f"{display_name(record.model)} {record.tag}")
        yield _problem(language, title, translate(language, "log"), again=True)
        return
    if picture is not None:
        view = look(classifier, picture)
        status = f"{view.result.top.label} {view.result.top.probability:.1%}"
        yield Update(None, status, render("result", language, view=view, record=record, is_example=order.is_example))
        return
    rows = []
    for done, file in enumerate(order.files):
        yield Update(None, "", render("classifying", language, done=done, total=count))
        picture, error = read(file)
        view_or_none = None if picture is None else look(classifier, picture, explain=False)
        if picture is not None:
            picture.thumbnail((96, 96))  # as the table shows it
        rows.append(Row(file.name, picture, view_or_none, error))
    yield Update(None, translate(language, "pictures", count=count), table(language, rows, record))


def _problem(language: str, title: str, detail: str, *, again: bool = False, preview: str | None = None) -> Update:
    return Update(preview, title, render("problem", language, title=title, detail=detail, again=again))
