"""Read image files with Pillow as upright RGB images; an ImageError says why a file cannot be read.

The EXIF orientation is applied; malformed EXIF data are ignored. Of an animation the first frame is read, of a camera's
multi-picture file the first picture. HEIC is read where pillow-heif is installed, AVIF by Pillow 11.3 and later.

How other modes become RGB:

- Alpha, transparent palette entries and a transparent colour are composited on white.
- Grey, one-bit, CMYK, YCbCr, HSV and LAB pictures are converted as Pillow does. Embedded colour profiles are ignored,
  as is usual in the field: classifiers are trained on such numbers.
- 16-bit grey is divided by 257 and rounded; Pillow alone would clip it. Mode ``I`` counts as 16-bit, since 16-bit
  files arrive in it too; values beyond 65,535 are refused. Of 16-bit colour, Pillow keeps the upper 8 bits.
  A TIFF file of 12 bits, and any with ``bits=``, is scaled by its own range. A picture that uses less than a sixteenth
  of the range is read as it is, almost black, and a warning is logged once.
- In TIFF files whose tag says that white is zero, 16-bit grey is inverted; Pillow inverts the rest.
- Floating-point grey (mode ``F``) has no agreed scale and is refused.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, TypeAlias, TypeVar

import torch
from torch import Tensor

from ..utils.errors import ImageError
from ..utils.files import open_regular
from ..utils.log import warn_once
from ..utils.text import printable, reason

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_PIXELS = 89_478_485
"""The largest picture that is decoded, in pixels: where Pillow begins to suspect a decompression bomb."""

Box: TypeAlias = "tuple[float, float, float, float]"  # left, upper, right and lower edge of a part, in pixels
File: TypeAlias = "str | os.PathLike[str] | IO[bytes]"

# Recognised by Pillow but not decoded by itself: EPS would run Ghostscript, IPTC hands on whatever is wrapped in it to
# any format, EPS among them, and the others need a foreign loader.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
# Extensions of pictures that may not be readable, and why.
_UNREADABLE = {
    **dict.fromkeys((".heic", ".heics", ".heif", ".heifs", ".hif"), "pip install pillow-heif"),
    ".avif": "requires Pillow 11.3",
    **dict.fromkeys((".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"), "raw: export as JPEG or TIFF"),
    **dict.fromkeys((".eps", ".pdf", ".svg"), "vector graphics"),
}
_MOST_BITS = 16
_PHOTOMETRIC_TAG, _BITS_TAG, _MAXIMUM_TAG = 262, 258, 281  # of TIFF
_PNG_SIGNATURE, _PNG_TEXTS = b"\x89PNG\r\n\x1a\n", {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# How PIL.JpegImagePlugin numbers the ways of storing colours (0: 4:4:4, 1: 4:2:2, 2: 4:2:0), and by which factor a
# scaled picture must be larger: of 4:2:2, libjpeg scales the colours down twice as far. Others are not scaled.
_SIDE_FACTORS = {0: 1, 1: 2, 2: 1}
_ORIENTATION_TAG = 0x0112
# Pillow's lazy loading and its store of EXIF data are not made for threads that share an image object.
_shared_image_lock = threading.Lock()


def load_image(path_or_file: File, *, least_side: int | None = None, bits: int | None = None) -> Image.Image:
    """Read an image file as an upright RGB picture; more than 89 million pixels are refused before they are decoded.

    Args:
        path_or_file: a path, or a file opened for binary reading, which stays open.
        least_side: pixels that the shorter side keeps when a JPEG file is decoded at 1/2, 1/4 or 1/8 of its size,
            several times as fast. None decodes the whole size.
        bits: of the values of grey pictures in 16-bit files, 1 to 16: 12 for most X-rays. None takes 16, or what the
            file says.

    Raises:
        ImageError: there is no such file, it is a folder or a device, not an image, damaged or too large, or a value
            has more than ``bits``. The message names the file and says why in one line.
        ValueError: ``bits`` is out of range.
    """
    if bits is not None and not 1 <= bits <= _MOST_BITS:
        raise ValueError(f"bits must be between 1 and {_MOST_BITS}, got {bits}")
    return decode_image(path_or_file, least_side=least_side, bits=bits)[0]


def decode_image(
    file: File, name: str | None = None, *, least_side: int | None = None, bits: int | None = None
) -> tuple[Image.Image, Box | None]:
    """Read like ``load_image``; return the image and, if it was scaled down, which part of it the picture fills.

    At 1/8 a picture of 4001 pixels is 500.125 wide, in an image of 501. Errors call the picture ``name``, or by its
    file.
    """
    return _read(file, name, lambda image, name: _upright(image, name, least_side, bits))


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return the width and height that an image file states, in pixels, without decoding it or turning it upright.

    Raises:
        ImageError: as for ``load_image``, as far as the start of the file shows it.
    """
    return _read(path, None, lambda image, _: image.size)


def _read(file: File, name: str | None, use: Callable[[Image.Image, str], T]) -> T:
    """Return what ``use`` makes of an open image and its name."""
    if isinstance(file, (str, os.PathLike)):
        name = name or printable(os.fspath(file))
        with _open_file(file, name) as opened:
            return _read(opened, name, use)
    name = name or printable(str(getattr(file, "name", "the open file")))
    try:
        return _decode(file, name, use)
    except ImageError:
        plain = _without_texts(file)
        if plain is None:
            raise
    return _decode(plain, name, use)


def _open_file(path: str | os.PathLike[str], name: str) -> BinaryIO:
    try:
        return open_regular(path)
    except FileNotFoundError:
        why = "is an address, not a file: download it first" if _URL.match(name) else "no such file"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = f"cannot be opened: {reason(error)}"
    raise ImageError(f"{name}: {why}")


def upright_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """Return a Pillow image as a new RGB image, its EXIF orientation applied. Threads may share the image.

    Raises:
        ImageError: the image could not be decoded; the message calls it ``name``.
    """
    try:
        return _upright(image, name, is_shared=True)[0]
    except Exception as error:  # decoders fed with damaged bytes raise almost anything
        raise ImageError(f"{name}: cannot be read: {reason(error)}") from error


def _upright(
    image: Image.Image, name: str, least_side: int | None = None, bits: int | None = None, *, is_shared: bool = False
) -> tuple[Image.Image, Box | None]:
    from PIL import ImageOps

    with _shared_image_lock if is_shared else nullcontext():
        size = _scale_down(image, least_side) if least_side else None
        _scale_transparent_level(image)
        image.load()
        # After loading: Pillow turns a TIFF upright while it loads, and drops the tag.
        orientation = _orientation(image, name)
    rgb = to_rgb(image, name, bits)
    box = None
    if size is not None:
        _replace_padding(rgb, *size)
        box = _turned_box(rgb.size, size, orientation)
    if orientation != 1:
        rgb.getexif()[_ORIENTATION_TAG] = orientation
        ImageOps.exif_transpose(rgb, in_place=True)
    return rgb, box


def _scale_down(image: Image.Image, least_side: int) -> tuple[float, float] | None:
    """Let a JPEG file be decoded at a fraction of its size; return its width and height then, None if it is not."""
    from PIL import JpegImagePlugin

    if isinstance(image, JpegImagePlugin.JpegImageFile):
        factor = 1 if image.mode == "L" else _SIDE_FACTORS.get(JpegImagePlugin.get_sampling(image))
        if factor is not None and min(image.size) >= 2 * factor * least_side:
            draft = image.draft(None, (factor * least_side, factor * least_side))
            return None if draft is None else draft[1][2:]
    return None


def _replace_padding(image: Image.Image, width: float, height: float) -> None:
    """Repeat the last column and row that the picture fills where it fills a column or row only in part."""
    columns, rows = int(width), int(height)
    if columns < image.width:
        image.paste(image.crop((columns - 1, 0, columns, image.height)), (columns, 0))
    if rows < image.height:
        image.paste(image.crop((0, rows - 1, image.width, rows)), (0, rows))


def _turned_box(whole: tuple[int, int], size: tuple[float, float], orientation: int) -> Box:
    """Return the part of an image that a picture at its upper left fills, after the image has been turned upright."""
    (width, height), (spare_x, spare_y) = size, (whole[0] - size[0], whole[1] - size[1])
    if orientation in (5, 6, 7, 8):
        width, height, spare_x, spare_y = height, width, spare_y, spare_x
    left = spare_x if orientation in (2, 3, 6, 7) else 0.0
    top = spare_y if orientation in (3, 4, 7, 8) else 0.0
    return left, top, left + width, top + height


def find_images(
    folder: str | os.PathLike[str], *, also: tuple[str, ...] = (), left_out: Counter[str] | None = None
) -> Iterator[tuple[Path, ImageError | None]]:
    """Iterate over the image files of a folder and its subfolders, in natural order (2 before 10).

    A file counts by its name's extension, in upper or lower case: those of the formats that ``load_image`` reads, and
    the ends ``also``. Links are followed, but every real folder is visited once, so that loops end. A dangling link or
    a FIFO with an image's name is listed: reading it raises the error. A subfolder that cannot be read is yielded with
    its error. ``left_out`` counts what is skipped: "hidden folders", "hidden images", or an extension such as ".heic".

    Raises:
        ImageError: while iterating, there is no such folder, or it cannot be read.
    """
    root, extensions = Path(folder), image_extensions()
    left_out = Counter() if left_out is None else left_out
    try:
        waiting = sorted(root.iterdir(), key=natural_key, reverse=True)
        folders = {root.resolve()}
    except (OSError, ValueError) as error:
        raise ImageError(f"{printable(str(root))}: cannot be listed: {reason(error)}") from None
    while waiting:  # not by recursion: folders may be nested deeper than Python's stack allows
        entry = waiting.pop()
        hidden, suffix = entry.name.startswith("."), entry.suffix.lower()
        fits = suffix in extensions or entry.name.lower().endswith(also)
        try:
            if not entry.is_dir():
                if hidden:
                    left_out["hidden images"] += fits
                elif fits:
                    yield entry, None
                else:
                    left_out[suffix] += 1
            elif hidden:
                left_out["hidden folders"] += 1
            elif entry.resolve() not in folders:
                folders.add(entry.resolve())
                waiting += sorted(entry.iterdir(), key=natural_key, reverse=True)
        except OSError as error:
            yield entry, ImageError(f"{printable(str(entry))}: cannot be listed: {reason(error)}")


def require_images(path: str, entries: Iterable[T], left_out: Counter[str]) -> Iterator[T]:
    """Iterate over what a folder holds; log what has been left out, or raise ImageError if nothing remains."""
    count = 0
    for entry in entries:
        yield entry
        count += 1
    text = describe_left_out(left_out)
    if not count:
        raise ImageError(f"{printable(path)}: no images in this folder" + (f"; left out: {text}" if text else ""))
    if text:
        level = logging.INFO if _UNREADABLE.keys().isdisjoint(left_out) else logging.WARNING
        logger.log(level, "%s: left out: %s", printable(path), text)


def describe_left_out(left_out: Counter[str]) -> str:
    """Return what :func:`find_images` skipped: "5 .heic (pip install pillow-heif), 1 hidden folder, 12 .txt"."""
    texts = []
    for kind in sorted(+left_out, key=lambda kind: (kind not in _UNREADABLE, kind)):
        noun = printable(kind) or "without an extension"
        if left_out[kind] == 1 and kind.startswith("hidden"):
            noun = noun.removesuffix("s")
        texts.append(f"{left_out[kind]} {noun}" + (f" ({_UNREADABLE[kind]})" if kind in _UNREADABLE else ""))
    return ", ".join(texts)


def to_rgb(image: Image.Image, name: str = "the image", bits: int | None = None) -> Image.Image:
    """Return an image of any mode as a new, opaque RGB image of the same size, without metadata.

    The rules are in the module's description. The EXIF orientation is ignored; :func:`upright_rgb` applies it. A
    warning calls the image ``name``; ``bits`` as for ``load_image``.

    Raises:
        ImageError: the image has no pixels, or values without a meaning: floating-point ones, or beyond ``bits``.
    """
    from PIL import Image

    if 0 in image.size:
        raise ImageError(f"the image has no pixels: its size is {image.width} x {image.height}")
    _scale_transparent_level(image)
    if image.mode == "F":
        raise ImageError("its grey values are floating-point numbers, which have no agreed scale: make them 0 to 255")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = _integer_levels(image, name, bits)
        image = Image.frombytes("L", image.size, grey.to(torch.uint8).numpy().tobytes())
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    rgb = image.convert("RGB")
    rgb.info = {}  # its transparency has been applied
    return rgb


def _integer_levels(image: Image.Image, name: str, bits: int | None) -> Tensor:
    """Return the levels of 16-bit grey, (H * W,) from 0 to 255; the transparent one is white."""
    values = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32)
    low, high = int(values.min()), int(values.max())
    if bits is None:
        of_file = _tiff_tag(image, _BITS_TAG)
        bits = of_file if 8 < of_file < _MOST_BITS else _MOST_BITS
        if bits == _MOST_BITS and 0 < high < 2**_MOST_BITS // 16:
            likely = max(high, _tiff_tag(image, _MAXIMUM_TAG), 255).bit_length()
            warn_once(
                logger,
                "16 bits",
                "%s: the largest of its 16-bit values is %d, so that it is almost black; if its values have %d bits, "
                "read it by hardnet.load_image(path, bits=%d)",
                *(name, high, likely, likely),
            )
    if low < 0 or high >= 2**bits:
        raise ImageError(
            f"the grey values run from {low} to {high}, beyond {bits} bits, and there is no agreed scale for these: "
            "convert the image to 8 bits first"
        )
    most = 2**bits - 1
    levels: Tensor = (values * 255 + most // 2) // most  # to the nearest
    if _tiff_tag(image, _PHOTOMETRIC_TAG, 1) == 0:
        levels = 255 - levels
    key = image.info.get("transparency")
    return levels.masked_fill(values == key, 255) if isinstance(key, int) else levels


def _tiff_tag(image: Image.Image, tag: int, default: int = 0) -> int:
    """Return the number in a tag of an opened TIFF file."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else default


def _scale_transparent_level(image: Image.Image) -> None:
    """Scale the transparent level of a PNG file of 2 or 4 bits as Pillow scales the pixels when it loads them."""
    level, tiles = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format == "PNG" and isinstance(level, int) and tiles and tiles[0][3] in ("L;2", "L;4"):
        image.info["transparency"] = level * (85 if tiles[0][3] == "L;2" else 17)


def _without_texts(file: IO[bytes]) -> IO[bytes] | None:
    """A PNG file without texts and profile, of which Pillow refuses large or damaged ones; None if it has none."""
    with contextlib.suppress(OSError, AttributeError):  # not every stream can be rewound
        file.seek(0)
        if file.read(8) == _PNG_SIGNATURE:
            content, position, parts = file.read(), 0, [_PNG_SIGNATURE]
            while position < len(content):
                end = position + 12 + int.from_bytes(content[position : position + 4], "big")
                if content[position + 4 : position + 8] not in _PNG_TEXTS:
                    parts.append(content[position:end])
                position = end
            if sum(map(len, parts)) < len(content):
                return io.BytesIO(b"".join(parts))
    return None


def _decode(file: IO[bytes], name: str, use: Callable[[Image.Image, str], T]) -> T:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=_formats()) as image:
            if image.width * image.height <= MAX_PIXELS:
                return use(image, name)
            why = f"is too large: {image.width} x {image.height} pixels, the limit is {MAX_PIXELS:,}"
    except UnidentifiedImageError:
        advice = _UNREADABLE.get(".heic" if _is_heic(file) else Path(name).suffix.lower())
        why = "is not an image in a format that Pillow decodes" + (f" ({advice})" if advice else "")
    except Exception as error:  # Pillow's plug-ins raise almost anything when they are fed with damaged bytes
        why = f"cannot be read: {reason(error)}"
    raise ImageError(f"{name}: {why}")


def _is_heic(file: IO[bytes]) -> bool:
    """Return True for a photograph of an iPhone, under whatever name."""
    with contextlib.suppress(OSError, AttributeError):  # not every stream can be rewound
        file.seek(4)
        return file.read(8) in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")
    return False


def _orientation(image: Image.Image, name: str) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception as error:  # as with decoders: almost anything
        logger.info("%s: its EXIF data are malformed and were ignored: %s", name, reason(error))
        return 1


def _formats() -> list[str]:
    """The formats of all plug-ins of Pillow, in the order in which it tries them."""
    from PIL import Image

    Image.init()
    _extend_pillow()
    return [name for name in Image.ID if name not in _NOT_DECODED]


@functools.cache
def _extend_pillow() -> None:
    """Let Pillow read HEIC if pillow-heif is installed, and big-endian TIFF files of 16 bits in which white is zero."""
    from PIL import TiffImagePlugin

    TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


def image_extensions() -> set[str]:
    """Return the extensions of image files, in lower case."""
    from PIL import Image

    formats = {*_formats(), "MPO"}  # MPO has no decoder of its own, JPEG's opens it
    return {ext for ext, name in Image.registered_extensions().items() if name in formats}


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Return the sort key of a path by its name, in which numbers count as numbers."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name
