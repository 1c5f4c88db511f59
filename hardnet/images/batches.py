"""Turn the inputs of a classifier into tensors: expand folders, decode in threads, keep the order."""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard, Union, cast

import torch
from torch import Tensor

from ..utils.errors import ImageError
from ..utils.log import warn_once
from ..utils.text import printable
from .preprocess import Preprocessing
from .read import Box, decode_image, find_images, require_images, upright_rgb

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

ImageLike = Union[str, os.PathLike[str], bytes, IO[bytes], "Image.Image", Tensor, "np.ndarray[Any, Any]"]
"""A path, the bytes of a file, a file opened for binary reading, a Pillow image, a tensor, or a NumPy array."""
Transform = Callable[["Image.Image"], Tensor]
Decode: TypeAlias = Literal["exact", "fast"]
"""Ways to decode and resize files: "exact" is equal to torchvision to the last bit. "fast" decodes JPEG files at 1/2,
1/4 or 1/8 of their size while the shorter side stays at least twice the resize, and resizes what the crop shows."""

_NICE = 10  # how much lower the priority of threads that decode is
WORKERS = min(8, os.cpu_count() or 1)
"""Threads that decode."""
_LARGE, _HINT_AFTER = 2_000_000, 32  # pixels of a large picture; images after which fast decoding is suggested
_FAR_OUT = 30.0  # beyond what any usual normalisation gives; ImageNet's gives up to 2.7

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Item:
    """One image before decoding: its source and its content, or an ImageError if it is known to be unusable."""

    source: str
    content: ImageLike | ImageError


def expand(images: ImageLike | Iterable[ImageLike | Item]) -> Iterator[Item]:
    """Iterate over the single images of an input; folders and batches of tensors or arrays are split.

    Raises:
        TypeError: at once if ``images`` is of no supported type, while iterating for an entry.
        ImageError: while iterating, a folder that is the whole input has no images or cannot be read.
    """
    if is_single(images):
        return _expand([cast(ImageLike, images)])
    if isinstance(images, (str, os.PathLike)):
        return _folder(images)
    try:
        return _expand(iter(cast("Iterable[ImageLike | Item]", images)))
    except TypeError:
        raise _wrong_type(images) from None


def is_single(images: object) -> bool:
    """Return whether an input is one image, or tensors or arrays of images: anything but a folder or an iterable."""
    if isinstance(images, (str, os.PathLike)):
        return not os.path.isdir(images)  # noqa: PTH112 (Path.is_dir may raise; reading the file says what is wrong)
    return isinstance(images, Item) or _is_image_like(images)


def decode_ahead(
    items: Iterable[Item], transform: Transform, model: torch.nn.Module, batch_size: int, decode: Decode = "exact"
) -> Generator[tuple[Item, Tensor | ImageError], None, None]:
    """Iterate over the items with what :func:`prepare` makes of them with ``raw``, in order.

    Threads decode ahead: up to ``batch_size`` images (at least one per thread) beyond those that were taken. They end
    with the iterator, also when it is closed early.
    """
    if os.getpid() != _first_process():
        warn_once(
            logger, "fork", "forked after images were classified, this process may hang: start processes by 'spawn'"
        )
    begin, waited, count, large = time.perf_counter(), 0.0, 0, 0

    def count_large(image: Image.Image) -> None:
        nonlocal large
        large += image.width * image.height > _LARGE

    work = functools.partial(prepare, raw=True, decode=decode, report=count_large if decode == "exact" else None)
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="hardnet-decode", initializer=_yield_to_model)
    try:
        futures = ((item, pool.submit(work, item, transform, model)) for item in items)
        pending = deque(islice(futures, max(batch_size, WORKERS) + 1))
        while pending:
            item, future = pending.popleft()
            start = time.perf_counter()
            error = future.exception()
            waited += time.perf_counter() - start
            count += 1
            if count == _HINT_AFTER and 2 * large > count and 2 * waited > time.perf_counter() - begin:
                logger.warning("decoding large pictures takes most of the time: decode='fast' (--decode fast) helps")
            yield item, error if isinstance(error, ImageError) else future.result()
            pending.extend(islice(futures, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _yield_to_model() -> None:
    """Let the model's threads go first: each waits for all others of the model, and decoding is ahead."""
    if sys.platform == "linux":  # elsewhere, threads have no priority of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICE)


@functools.cache
def _first_process() -> int:
    """The process that was the first to prepare images, also in those that are forked from it."""
    return os.getpid()


def prepare(
    item: Item,
    transform: Transform,
    model: torch.nn.Module | None = None,
    *,
    raw: bool = False,
    decode: Decode = "exact",
    report: Callable[[Image.Image], None] | None = None,
) -> Tensor:
    """Return the model input of one item: a float tensor (model.in_chans or else 3, H, W).

    With ``raw``, what :class:`Preprocessing` prepares is returned as uint8 pixels, before normalisation. ``decode``
    "fast" requires it. ``report`` is called with every decoded picture.

    Raises:
        ImageError: the image is unusable, or smaller after the transform than the model takes.
        ValueError: the transform does not return a float tensor of the model's channels.
    """
    in_chans, min_size = getattr(model, "in_chans", 3), getattr(model, "min_input_size", 1)
    content, name = item.content, printable(item.source)
    if isinstance(content, ImageError):
        raise content
    if isinstance(content, Tensor) and content.is_floating_point():
        return _checked_input(content, name, in_chans, min_size)
    preprocessing = transform if type(transform) is Preprocessing else None
    least_side = 2 * preprocessing.resize if preprocessing is not None and decode == "fast" else 0
    image, box = _decode(content, name, least_side)
    if report is not None:
        report(image)
    if preprocessing is None:
        tensor = transform(image)
    else:
        tensor = preprocessing.pixels(image, fast=decode == "fast", box=box)
        tensor = tensor if raw else preprocessing.normalise(tensor)
    right_type = isinstance(tensor, Tensor) and (preprocessing is not None or tensor.is_floating_point())
    if not right_type or tensor.dim() != 3 or len(tensor) != in_chans:
        raise ValueError(
            f"the model takes {in_chans} channels: the transform must return a float tensor ({in_chans}, H, W), got "
            f"{_describe(tensor)}"
        )
    if min(tensor.shape[1:]) < min_size:
        raise ImageError(f"{name}: {_describe(tensor)} is too small, the model takes {min_size} pixels or more")
    return tensor


def prepare_each(
    images: ImageLike | Iterable[ImageLike], transform: Transform, model: torch.nn.Module
) -> Iterator[Tensor]:
    """Iterate over the images as batches of one, (1, channels, H, W); an unusable one raises ImageError."""
    return (prepare(item, transform, model)[None] for item in expand(images))


def _is_image_like(value: object) -> TypeGuard[ImageLike]:
    from PIL import Image

    types = (str, os.PathLike, bytes, Tensor, Image.Image)
    return isinstance(value, types) or hasattr(value, "read") or _is_array(value)


def _is_array(value: object) -> TypeGuard[np.ndarray[Any, Any]]:
    """Return True for a NumPy array of numbers; arrays of paths are iterables like others."""
    return hasattr(value, "__array__") and getattr(getattr(value, "dtype", None), "kind", "") in tuple("biufc")


def _wrong_type(value: object) -> TypeError:
    return TypeError(
        "an image is a path, bytes, an open binary file, a Pillow image, a tensor or a NumPy array, got "
        f"{type(value).__name__}"
    )


def _expand(entries: Iterable[ImageLike | Item]) -> Iterator[Item]:
    position = 0  # among the results, to which a folder or a batch contributes as many as it holds
    for entry in entries:
        for item in _items(entry, position):
            yield item
            position += 1


def _items(entry: ImageLike | Item, position: int) -> Iterator[Item]:
    if isinstance(entry, Item):  # expanded before
        yield entry
    elif isinstance(entry, (str, os.PathLike)):
        try:
            yield from [Item(os.fspath(entry), entry)] if is_single(entry) else _folder(entry)
        except ImageError as error:
            yield Item(os.fspath(entry), error)
    elif _is_image_like(entry):
        kind = "tensor" if isinstance(entry, Tensor) else "image"
        parts: Iterable[Any] = cast(Tensor, entry) if getattr(entry, "ndim", 0) == 4 else [entry]
        for number, part in enumerate(parts, position):
            yield Item(f"<{kind} {number}>", part)
    else:
        raise _wrong_type(entry)


def _folder(path: str | os.PathLike[str]) -> Iterator[Item]:
    left_out = Counter[str]()
    for file, error in require_images(os.fspath(path), find_images(path, left_out=left_out), left_out):
        yield Item(str(file), error or str(file))


def _decode(content: ImageLike, name: str, least_side: int) -> tuple[Image.Image, Box | None]:
    """Return raw content as an upright RGB image, and which part of it the picture fills (see `decode_image`)."""
    from PIL import Image

    if isinstance(content, bytes):
        content = io.BytesIO(content)
    if isinstance(content, Tensor) or _is_array(content):
        shape = tuple(content.shape)
        fits = shape[:-2] == (3,) if isinstance(content, Tensor) else shape[2:] in ((), (3,), (4,)) and len(shape) > 1
        if not fits or not str(content.dtype).endswith("uint8"):
            raise ImageError(
                f"{name}: raw values have the type uint8 and the shape (3, H, W) in a tensor, (H, W, 3), (H, W, 4) or "
                f"(H, W) in an array, got {content.dtype} {shape}"
            )
        content = Image.fromarray(content.cpu().permute(1, 2, 0).numpy() if isinstance(content, Tensor) else content)
    if isinstance(content, Image.Image):
        return upright_rgb(content, name), None
    own_name = None if isinstance(content, (str, os.PathLike)) else name
    return decode_image(cast("str | IO[bytes]", content), own_name, least_side=least_side or None)


def _checked_input(tensor: Tensor, name: str, in_chans: int, min_size: int) -> Tensor:
    """Return prepared model input (in_chans, H, W); raise ImageError if the shape or a value does not fit."""
    if tensor.dim() != 3 or len(tensor) != in_chans or min(tensor.shape[1:]) < min_size:
        raise ImageError(
            f"{name}: a floating-point tensor is model input, ({in_chans}, H, W) with H and W of at least {min_size}, "
            f"got {_describe(tensor)}"
        )
    if not bool(tensor.isfinite().all()):
        raise ImageError(f"{name}: the tensor has values that are infinite or not a number")
    largest = float(tensor.detach().abs().max())
    if largest > _FAR_OUT:
        warn_once(
            logger,
            "tensor values",
            "%s: its values go up to %.4g, but a floating-point tensor is used as it is and should be normalised; raw "
            "values from 0 to 255 are prepared if the tensor is uint8",
            *(name, largest),
        )
    return tensor


def _describe(value: object) -> str:
    """Return the type and shape of a tensor, or the type of anything else, for a message."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
