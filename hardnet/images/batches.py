"""Turn the inputs of a classifier into batches of tensors: expand folders, decode in threads, keep the order."""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard, Union, cast, get_args

import torch
from torch import Tensor

from ..utils.errors import ImageError
from ..utils.log import warn_once
from ..utils.text import printable
from .preprocess import Preprocessing
from .read import Box, decode_image, find_images, log_left_out, no_images, upright_rgb

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

ImageLike = Union[str, os.PathLike[str], bytes, IO[bytes], "Image.Image", Tensor, "np.ndarray[Any, Any]"]
"""A path, the bytes of a file, a file opened for binary reading, a Pillow image, a tensor, or a NumPy array."""
Transform = Callable[["Image.Image"], Tensor]
Decode: TypeAlias = Literal["exact", "fast"]
"""How files are decoded and resized: "exact" is equal to torchvision to the last bit. "fast" decodes JPEG files at 1/2,
1/4 or 1/8 of their size while the shorter side stays at least twice the resize, and resizes what the crop shows."""

_NICE = 10
"""How much lower the priority of threads that decode is."""
WORKERS = min(8, os.cpu_count() or 1)
"""Threads that decode."""
_LARGE, _HINT_AFTER = 2_000_000, 32
"""From how many pixels on a picture counts as large, and after how many images fast decoding is suggested."""

_FAR_OUT = 30.0
"""Beyond what any usual normalisation gives; ImageNet's gives up to 2.7."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Item:
    """One image before decoding: its source and its content, or an ImageError if it is known to be unusable."""

    source: str
    content: ImageLike | ImageError


@dataclass(frozen=True)
class Batch:
    """Up to ``batch_size`` images in order; each outcome is a tensor (channels, H, W), an output row or an error."""

    items: list[Item]
    outcomes: list[Tensor | ImageError]

    def stacks(self) -> Iterator[tuple[list[int], Tensor]]:
        """Iterate over the tensors of one shape and type: their positions and the stack (N, channels, H, W)."""
        groups: defaultdict[object, list[int]] = defaultdict(list)
        for position, outcome in enumerate(self.outcomes):
            if isinstance(outcome, Tensor):
                groups[outcome.shape, outcome.dtype, outcome.device].append(position)
        for positions in groups.values():
            yield positions, torch.stack([cast(Tensor, self.outcomes[position]) for position in positions])

    def set_rows(self, positions: list[int], rows: Tensor, finite: Tensor) -> None:
        """Replace the tensors at these positions by the model's output (N, ...), or an error if it is not finite."""
        for position, row, usable in zip(positions, rows, finite.tolist(), strict=True):
            name = printable(self.items[position].source)
            self.outcomes[position] = (
                row if usable else ImageError(f"{name}: the model's output is infinite or not a number")
            )


def expand(images: ImageLike | Iterable[ImageLike | Item]) -> Iterator[Item]:
    """Iterate over the single images of an input; folders and batches of tensors or arrays are split.

    What is left out of folders is logged.

    Raises:
        TypeError: at once if ``images`` is of no supported type, while iterating for an entry.
        ImageError: while iterating, a folder that is the whole input has no images or cannot be read.
    """
    if isinstance(images, (str, os.PathLike)) and not is_single(images):
        return _expand_folder(images)
    if isinstance(images, Item) or _is_image_like(images):
        return _expand([images])
    try:
        return _expand(iter(cast("Iterable[ImageLike | Item]", images)))
    except TypeError:
        raise _wrong_type(images) from None


def is_single(images: object) -> bool:
    """Return whether an input is one image, or tensors or arrays of images: anything but a folder or an iterable."""
    if isinstance(images, (str, os.PathLike)):
        return not os.path.isdir(images)  # noqa: PTH112 (Path.is_dir may raise; reading the file says what is wrong)
    return isinstance(images, Item) or _is_image_like(images)


def count_ahead(images: object, items: Iterator[Item], limit: int) -> tuple[int | None, Iterator[Item]]:
    """Return the number of items, at most ``limit``, and an iterator over all of them; None for a generator's input.

    Of a generator nothing is taken: its next image may take time, or a lot of memory.
    """
    if not (isinstance(images, (Item, Sized)) or _is_image_like(images)):
        return None, items
    first = list(islice(items, limit))
    return len(first), chain(first, items)


def prepare_batches(
    items: Iterable[Item], transform: Transform, model: torch.nn.Module, batch_size: int, decode: Decode = "exact"
) -> Generator[Batch, None, None]:
    """Iterate over batches of prepared images, in order.

    What :class:`Preprocessing` prepares is uint8 pixels that are still to be normalised. Threads decode ahead: up to
    ``batch_size`` images (at least one per thread) beyond the current batch. They end with the iterator, also when it
    is closed early.

    Raises:
        ValueError: while iterating, the transform does not return an image that fits the model.
    """
    with closing(_decode_ahead(items, transform, model, max(batch_size, WORKERS), decode)) as decoded:
        batch = Batch([], [])
        for item, outcome in decoded:
            batch.items.append(item)
            batch.outcomes.append(outcome)
            if len(batch.items) == batch_size:
                yield batch
                batch = Batch([], [])
        if batch.items:
            yield batch


def _decode_ahead(
    items: Iterable[Item], transform: Transform, model: torch.nn.Module, window: int, decode: Decode
) -> Generator[tuple[Item, Tensor | ImageError], None, None]:
    check_decode(decode, transform)
    if os.getpid() != _first_process():
        warn_once(
            logger,
            "fork",
            "this process was forked from one that had classified images, and torch may wait for ever in it: start "
            "processes by 'spawn', as multiprocessing.get_context('spawn') does",
        )
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="hardnet-decode", initializer=_yield_to_model)
    pending: deque[tuple[Item, Future[Tensor]]] = deque()
    load = _Load()
    decode_item = functools.partial(prepare, raw=True, decode=decode, report=load.add if decode == "exact" else None)

    def outcome(future: Future[Tensor]) -> Tensor | ImageError:
        begin = time.perf_counter()
        try:
            return future.result()
        except ImageError as error:
            return error
        finally:
            load.waited(time.perf_counter() - begin)

    try:
        for item in items:
            pending.append((item, pool.submit(decode_item, item, transform, *input_limits(model))))
            if len(pending) > window:
                first, future = pending.popleft()
                yield first, outcome(future)
        while pending:
            first, future = pending.popleft()
            yield first, outcome(future)
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


class _Load:
    """The share of a job's time that goes into waiting for large pictures; suggests fast decoding once."""

    def __init__(self) -> None:
        self._begin, self._waited, self._large, self._done = time.perf_counter(), 0.0, 0, 0

    def add(self, image: Image.Image) -> None:
        """Count an image that a thread has decoded."""
        self._large += image.width * image.height > _LARGE

    def waited(self, seconds: float) -> None:
        """Count an image for which the model waited, in seconds."""
        self._waited += seconds
        self._done += 1
        elapsed = time.perf_counter() - self._begin
        if self._done == _HINT_AFTER and 2 * self._large > self._done and 2 * self._waited > elapsed:
            logger.warning(
                "most of the time goes into decoding large pictures: decode='fast' (--decode fast) is faster"
            )


def check_decode(decode: str, transform: Transform) -> None:
    """Check that the way of decoding is known and goes with the transform.

    Raises:
        ValueError: it does not.
    """
    if decode not in get_args(Decode):
        raise ValueError(f"decode must be 'exact' or 'fast', got {decode!r}")
    if decode == "fast" and type(transform) is not Preprocessing:
        raise ValueError("decode='fast' requires the preprocessing of the weights, not a transform= of your own")


def prepare(
    item: Item,
    transform: Transform,
    in_chans: int,
    min_size: int,
    *,
    raw: bool = False,
    decode: Decode = "exact",
    report: Callable[[Image.Image], None] | None = None,
) -> Tensor:
    """Return the model input of one item: a float tensor (in_chans, H, W).

    Args:
        item: the image.
        transform: Pillow image -> tensor.
        in_chans: the channels of the model.
        min_size: the least side of prepared input.
        raw: return what :class:`Preprocessing` prepares as uint8 pixels, before normalisation.
        decode: see :data:`Decode`; "fast" requires :class:`Preprocessing`.
        report: is called with every decoded picture.

    Raises:
        ImageError: the image is unusable, or too small after the transform.
        ValueError: the transform does not return a float tensor of ``in_chans`` channels.
    """
    content = item.content
    if isinstance(content, ImageError):
        raise content
    name = printable(item.source)
    preprocessing = transform if isinstance(transform, Preprocessing) and type(transform) is Preprocessing else None
    fast = decode == "fast" and preprocessing is not None
    least_side = (2 * preprocessing.resize or None) if fast and preprocessing else None
    box: Box | None = None
    if isinstance(content, Tensor):
        if content.is_floating_point():
            return _checked_input(content, name, in_chans, min_size)
        image = _from_raw(content, name)
    elif isinstance(content, (str, os.PathLike)):
        image, box = decode_image(content, least_side=least_side)
    elif isinstance(content, bytes):
        image, box = decode_image(io.BytesIO(content), name, least_side=least_side)
    elif hasattr(content, "read"):
        image, box = decode_image(cast("IO[bytes]", content), name, least_side=least_side)
    elif _is_array(content):
        image = _from_array(content, name)
    else:
        image = upright_rgb(cast("Image.Image", content), name)
    if report is not None:
        report(image)
    if preprocessing is None:
        tensor = transform(image)
    else:
        pixels = preprocessing.pixels(image, fast=fast, box=box)
        tensor = pixels if raw else preprocessing.normalise(pixels)
    if not isinstance(tensor, Tensor) or tensor.dim() != 3 or not (preprocessing or tensor.is_floating_point()):
        raise ValueError(f"the transform must return a float tensor ({in_chans}, H, W), got {_describe(tensor)}")
    if tensor.shape[0] != in_chans:
        raise ValueError(
            f"the model takes {in_chans} channels, the transform returned {len(tensor)}: pass a transform= that fits"
        )
    if min(tensor.shape[1:]) < min_size:
        raise ImageError(f"{name}: {_describe(tensor)} is too small, the model takes {min_size} pixels or more")
    return tensor


def prepare_each(
    images: ImageLike | Iterable[ImageLike], transform: Transform, model: torch.nn.Module
) -> Iterator[Tensor]:
    """Iterate over the images as batches of one, (1, channels, H, W).

    Raises:
        ImageError: while iterating, an image is unusable.
    """
    return (prepare(item, transform, *input_limits(model))[None] for item in expand(images))


def input_limits(model: torch.nn.Module) -> tuple[int, int]:
    """Return the channels and the least side in pixels of a model's input; 3 and 1 if it does not say."""
    return cast(int, getattr(model, "in_chans", 3)), cast(int, getattr(model, "min_input_size", 1))


def _is_image_like(value: object) -> TypeGuard[ImageLike]:
    from PIL import Image

    known = (str, os.PathLike, bytes, Tensor, Image.Image)
    return isinstance(value, known) or hasattr(value, "read") or _is_array(value)


def _is_array(value: object) -> TypeGuard[np.ndarray[Any, Any]]:
    """Whether it is a NumPy array of numbers; arrays of paths are iterables like others."""
    return hasattr(value, "__array__") and getattr(getattr(value, "dtype", None), "kind", "") in tuple("biufc")


def _wrong_type(value: object) -> TypeError:
    return TypeError(
        "an image is a path, bytes, an open binary file, a Pillow image, a tensor or a NumPy array, got "
        f"{type(value).__name__}"
    )


def _expand_folder(path: str | os.PathLike[str]) -> Iterator[Item]:
    for item in _files(path):
        if isinstance(item.content, ImageError) and item.source == os.fspath(path):
            raise item.content
        yield item


def _expand(entries: Iterable[ImageLike | Item]) -> Iterator[Item]:
    position = 0  # among the results, to which a folder or a batch contributes as many as it holds
    for entry in entries:
        for item in _items(entry, position):
            yield item
            position += 1


def _items(entry: ImageLike | Item, position: int) -> Iterator[Item]:
    if isinstance(entry, Item):  # expanded before
        return iter([entry])
    if not _is_image_like(entry):
        raise _wrong_type(entry)
    if isinstance(entry, Tensor):
        parts = enumerate(_single_tensors(entry), position)
        return (Item(f"<tensor {number}>", content) for number, content in parts)
    if isinstance(entry, (str, os.PathLike)):
        return _files(entry)
    if _is_array(entry) and entry.ndim == 4:
        return (Item(f"<image {number}>", part) for number, part in enumerate(entry, position))
    return iter([Item(f"<image {position}>", entry)])


def _files(path: str | os.PathLike[str]) -> Iterator[Item]:
    source = os.fspath(path)
    if not os.path.isdir(path):  # noqa: PTH112 (Path.is_dir may raise; reading the file says what is wrong)
        yield Item(source, path)
        return
    empty, left_out = True, Counter[str]()
    try:
        for file, error in find_images(path, left_out=left_out):
            empty = False
            yield Item(name := str(file), name if error is None else error)
        failure = no_images(source, left_out)
        if not empty:
            log_left_out(source, left_out)
    except ImageError as error:
        failure = error
    if empty:
        yield Item(source, failure)


def _single_tensors(tensor: Tensor) -> Iterable[Tensor | ImageError]:
    """(3, H, W) or (N, 3, H, W) -> its images, or why there are none."""
    if tensor.dim() == 3:
        return [tensor]
    if tensor.dim() == 4:
        return tensor.unbind()
    return [ImageError(f"an image tensor has the shape (3, H, W) or (N, 3, H, W), got {_describe(tensor)}")]


def _from_array(array: Any, name: str) -> Image.Image:
    """uint8 values (H, W), (H, W, 3) or (H, W, 4) -> RGB image.

    Raises:
        ImageError: another type or shape.
    """
    from PIL import Image

    shape = tuple(array.shape)
    if str(array.dtype) != "uint8" or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))):
        raise ImageError(
            f"{name}: an array of an image has the type uint8 and the shape (H, W, 3), (H, W, 4) or (H, W), got "
            f"{array.dtype} {shape}"
        )
    return upright_rgb(Image.fromarray(array), name)


def _from_raw(tensor: Tensor, name: str) -> Image.Image:
    """uint8 RGB values (3, H, W) -> RGB image.

    Raises:
        ImageError: another type or shape.
    """
    from PIL import Image

    if tensor.dtype != torch.uint8:
        raise ImageError(
            f"{name}: an image tensor holds raw values in uint8 or prepared ones in floating point, got {tensor.dtype}"
        )
    _check_shape(tensor, name, 3, 1)
    return Image.fromarray(tensor.cpu().permute(1, 2, 0).numpy())


def _checked_input(tensor: Tensor, name: str, in_chans: int, min_size: int) -> Tensor:
    """Return prepared model input (in_chans, H, W); raise ImageError if the shape or a value does not fit."""
    _check_shape(tensor, name, in_chans, min_size)
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


def _check_shape(tensor: Tensor, name: str, channels: int, min_size: int) -> None:
    if tensor.shape[0] == channels and min(tensor.shape[1:]) >= min_size:
        return
    last = tensor.shape[-1] == channels != tensor.shape[0]
    advice = ": the channels are last, move them to the front with permute" if last else ""
    raise ImageError(
        f"{name}: the tensor must have the shape ({channels}, H, W) with H and W of at least {min_size}, got "
        f"{_describe(tensor)}{advice}"
    )


def _describe(value: object) -> str:
    """Return the type and shape of a tensor, or the type of anything else, for a message."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
