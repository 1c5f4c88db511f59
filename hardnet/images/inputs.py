"""What a caller hands over to be classified, one picture at a time, in order and prepared ahead of its turn."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard, Union, cast

import torch
from torch import Tensor

from ..utils.errors import ImageError
from ..utils.text import printable
from .read import MAX_PIXELS, list_images, load_image, upright_rgb

if TYPE_CHECKING:
    from PIL import Image

ImageLike = Union[str, os.PathLike[str], "Image.Image", Tensor]
Transform = Callable[["Image.Image"], Tensor]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WORKERS = min(8, os.cpu_count() or 1)
"""Threads that decode."""


@dataclass(frozen=True)
class Item:
    """One picture: where it is from and what stands for it, an ImageError where already known to be unusable."""

    source: str
    content: ImageLike | ImageError
    alone: bool
    """Whether the caller asked for nothing but this, so that an error is to be raised and not collected."""


def expand(images: ImageLike | Iterable[ImageLike]) -> Iterator[Item]:
    """Iterate over the single pictures of what a caller handed over: folders and batches are taken apart.

    Raises:
        TypeError: at once where ``images`` itself is of no use, while iterating for an entry.
        ImageError: while iterating, a folder that was handed over alone has no images or cannot be read.
    """
    if _is_image_like(images):
        return _expand([images], alone=True)
    if isinstance(images, bytes) or hasattr(images, "read") or _is_numeric_array(images):
        raise _wrong_type(images)
    try:
        entries = iter(cast("Iterable[ImageLike]", images))
    except TypeError:
        raise _wrong_type(images) from None
    return _expand(entries, alone=False)


def prepare_ahead(
    items: Iterable[Item], prepare: Callable[[Item], Tensor], window: int
) -> Generator[tuple[Item, Tensor | ImageError], None, None]:
    """Iterate over the items in their order, each with its tensor or the reason why there is none.

    Threads run ``prepare`` on up to ``window`` items beyond the one that was given out last. They end with the
    iterator, also when it is closed early.
    """
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="hardnet-decode")
    pending: deque[tuple[Item, Future[Tensor]]] = deque()
    try:
        for item in items:
            pending.append((item, pool.submit(prepare, item)))
            if len(pending) > window:
                yield _outcome(*pending.popleft())
        while pending:
            yield _outcome(*pending.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def prepare(item: Item, transform: Transform, in_chans: int, min_size: int) -> Tensor:
    """Return the model input of one item: a float tensor (in_chans, H, W).

    Raises:
        ImageError: the picture is unusable.
        ValueError: the transform gave something else than a picture of ``in_chans`` channels.
    """
    content = item.content
    if isinstance(content, ImageError):
        raise content
    name = printable(item.source)
    if isinstance(content, Tensor):
        _check_kind(content, name)
        if content.is_floating_point():
            return _checked_input(content, name, in_chans, min_size)
        image = _from_raw(content, name)
    elif isinstance(content, (str, os.PathLike)):
        image = load_image(content)
    else:
        image = upright_rgb(content, name)
    tensor = transform(image)
    if not isinstance(tensor, Tensor) or tensor.dim() != 3 or not tensor.is_floating_point():
        raise ValueError(f"the transform must give a float tensor ({in_chans}, H, W), it gave {_describe(tensor)}")
    if tensor.shape[0] != in_chans:
        raise ValueError(
            f"the model takes {in_chans} channels, the transform gave {_describe(tensor)}: give a fitting transform="
        )
    return tensor


def input_limits(model: torch.nn.Module) -> tuple[int, int]:
    """Return the channels and the least side in pixels of a model's input; 3 and 1 where it does not say."""
    in_chans, min_size = getattr(model, "in_chans", 3), getattr(model, "min_input_size", 1)
    return (in_chans if isinstance(in_chans, int) else 3), (min_size if isinstance(min_size, int) else 1)


def _is_image_like(value: object) -> TypeGuard[ImageLike]:
    from PIL import Image

    return isinstance(value, (str, os.PathLike, Tensor, Image.Image))


def _is_numeric_array(value: object) -> bool:
    """Whether it is NumPy's kind of array, of numbers: arrays and columns of paths are iterables as good as any."""
    return hasattr(value, "__array__") and getattr(getattr(value, "dtype", None), "kind", "") in tuple("biufc")


def _wrong_type(value: object) -> TypeError:
    advice = ""
    if hasattr(value, "read"):
        advice = ": read files that are already open with hardnet.images.load_image"
    elif _is_numeric_array(value):
        advice = ": turn arrays into images with PIL.Image.fromarray, or into tensors with torch.from_numpy"
    return TypeError(
        "an image is the path of a file or folder, a Pillow image, a tensor, or an iterable of these, got "
        f"{type(value).__name__}{advice}"
    )


def _expand(entries: Iterable[ImageLike], alone: bool) -> Iterator[Item]:
    position = 0  # among the results, to which a folder or a batch contributes as many as it holds
    for entry in entries:
        for item in _items(entry, position, alone):
            yield item
            position += 1


def _items(entry: ImageLike, position: int, alone: bool) -> Iterator[Item]:
    if not _is_image_like(entry):
        raise _wrong_type(entry)
    if isinstance(entry, Tensor):
        tensors = enumerate(_single_tensors(entry), position)
        return (Item(f"<tensor {number}>", content, alone) for number, content in tensors)
    if isinstance(entry, (str, os.PathLike)):
        return _files(entry, alone)
    return iter([Item(f"<image {position}>", entry, alone)])


def _files(path: str | os.PathLike[str], alone: bool) -> Iterator[Item]:
    source = os.fspath(path)
    if not os.path.isdir(path):  # noqa: PTH112 (Path.is_dir may raise; what is wrong is told when the file is read)
        yield Item(source, path, alone)
        return
    found = False
    try:
        for file in list_images(path):
            found = True
            yield Item(str(file), file, alone=False)
        failure = ImageError(f"{printable(source)}: no images in this folder")
    except ImageError as error:
        failure = error
    if not found:
        yield Item(source, failure, alone)


def _single_tensors(tensor: Tensor) -> Iterable[Tensor | ImageError]:
    if tensor.dim() == 3:
        return [tensor]
    if tensor.dim() == 4 and tensor.layout is torch.strided:
        return tensor.unbind()
    return [ImageError(f"an image tensor has the shape (3, H, W) or (N, 3, H, W), got {_describe(tensor)}")]


def _check_kind(tensor: Tensor, name: str) -> None:
    """Refuse what has no values to look at, in numbers that torch computes with, or too many of them."""
    if tensor.is_meta or tensor.layout is not torch.strided:
        raise ImageError(f"{name}: the tensor is no plain array of values: {tensor.layout} on {tensor.device}")
    if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
        raise ImageError(f"{name}: an image tensor of {tensor.dtype} is not taken: convert it to torch.float32")
    if tensor.dim() == 3 and tensor.shape[1] * tensor.shape[2] > MAX_PIXELS:
        size = f"{tensor.shape[2]} x {tensor.shape[1]} pixels"
        raise ImageError(f"{name}: the tensor is too large: {size}, the limit is {MAX_PIXELS:,}")


def _from_raw(tensor: Tensor, name: str) -> Image.Image:
    """uint8 RGB values (3, H, W) -> RGB image."""
    from torchvision.transforms.functional import to_pil_image  # type: ignore[import-untyped]

    if tensor.dtype != torch.uint8:
        raise ImageError(
            f"{name}: an image tensor holds raw values in uint8 or prepared ones in floating point, got {tensor.dtype}"
        )
    _check_shape(tensor, name, 3, 1)
    image: Image.Image = to_pil_image(tensor.cpu())
    return image


def _checked_input(tensor: Tensor, name: str, in_chans: int, min_size: int) -> Tensor:
    _check_shape(tensor, name, in_chans, min_size)
    if not bool(tensor.isfinite().all()):
        raise ImageError(f"{name}: the tensor has values that are infinite or not a number")
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
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _outcome(item: Item, future: Future[Tensor]) -> tuple[Item, Tensor | ImageError]:
    try:
        return item, future.result()
    except ImageError as error:
        return item, error
