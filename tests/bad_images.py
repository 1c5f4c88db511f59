"""Make a folder of good and bad image files."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageCms, UnidentifiedImageError, features

MODES = (
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "LA",
    "La",
    "PA",
    "RGBX",
    "RGBa",
    "I;16",
)
_NOT_READ = {"EPS", "PDF", "PALM", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "JPEG", "MPO"}
"""JPEG comes apart; of the others Pillow decodes nothing by itself."""


@dataclass
class Corpus:
    """What lies in the folder. What is in ``either`` may be read or refused, whatever the damage allows."""

    folder: Path
    good: list[Path] = field(default_factory=list)
    bad: list[Path] = field(default_factory=list)
    either: list[Path] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.good) + len(self.bad) + len(self.either)

    def place(self, name: str | bytes, content: bytes) -> Path:
        path = self.folder / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path


def picture(mode: str = "RGB", size: tuple[int, int] = (24, 17)) -> Image.Image:
    colours = Image.radial_gradient("L").resize(size)
    if mode in ("I", "F"):
        return colours.convert(mode)
    if mode == "I;16":
        return colours.convert("I").convert("I;16")
    if mode == "La":
        return colours.convert("LA").convert("La")
    if mode == "RGBa":
        return colours.convert("RGBA").convert("RGBa")
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(colours.convert("RGB"), *profiles, outputMode="LAB")  # type: ignore[return-value]
    if mode == "PA":
        return colours.convert("P").convert("PA")
    return colours.convert("RGB").convert(mode)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def every_format() -> Iterator[tuple[str, bytes]]:
    """Every format and mode that this Pillow writes and can read back."""
    Image.init()
    extensions = {form: extension for extension, form in Image.registered_extensions().items()}
    for form in sorted(Image.SAVE):
        if form in _NOT_READ or form not in Image.OPEN:
            continue
        for mode in MODES:
            try:
                content = encoded(picture(mode), form)
                Image.open(io.BytesIO(content)).load()
            except (OSError, ValueError, KeyError, SystemError, UnidentifiedImageError):
                continue  # the format has no such mode, or Pillow cannot read what it wrote
            yield f"{form}-{mode.replace(';', '')}{extensions.get(form, '.png')}", content


def make_good(corpus: Corpus) -> None:
    def good(name: str | bytes, content: bytes) -> None:
        corpus.good.append(corpus.place(name, content))

    plain, png = picture(), encoded(picture(), "PNG")
    for mode in ("L", "RGB", "CMYK"):
        good(f"jpeg-{mode}.jpg", encoded(picture(mode), "JPEG"))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        good(f"turned-{orientation}.jpg", encoded(plain, "JPEG", exif=exif))
    for number, exif_bytes in enumerate(
        (b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 40, b"Exif\0\0MM\0*\0\0\0", b"Exif\0\0?")
    ):
        good(f"exif-{number}.jpg", encoded(plain, "JPEG", exif=exif_bytes))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    good("profile.jpg", encoded(plain, "JPEG", icc_profile=profile))
    good("profile-broken.png", encoded(plain, "PNG", icc_profile=b"no profile"))
    good("one-pixel.png", encoded(picture(size=(1, 1)), "PNG"))
    good("one-wide.png", encoded(picture(size=(1, 10_000)), "PNG"))
    good("one-high.png", encoded(picture(size=(10_000, 1)), "PNG"))
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "lime", "blue")]
    for form in ("GIF", "PNG", "TIFF", *(["WEBP"] if features.check("webp") else [])):
        good(f"film.{form.lower()}", encoded(frames[0], form, save_all=True, append_images=frames[1:]))
    good("deep.png", encoded(picture("I;16"), "PNG"))
    good("clear-palette.png", encoded(picture("P"), "PNG", transparency=0))
    good("clear-palette.gif", encoded(picture("P"), "GIF", transparency=3))
    good("wrong-extension.jpg", png)
    good("upper.PNG", png)
    for name in (
        b"with space.png",
        b"two\nlines.png",
        b"caf\xe9.png",
        b"\xff\xfe.png",
        b"-dash.png",
        b"tab\t.png",
        b"'q\".png",
    ):
        good(name, png)
    link = corpus.folder / "link.png"
    link.symlink_to(corpus.good[-1])
    corpus.good.append(link)


def make_bad(corpus: Corpus) -> None:
    def bad(path: Path) -> None:
        corpus.bad.append(path)

    bad(corpus.place("empty.png", b""))
    bad(corpus.place("text.jpg", b"just words"))
    bad(corpus.place("page.png", b"<!DOCTYPE html><html></html>"))
    bad(corpus.place("zeros.png", bytes(5000)))
    bad(corpus.place("program.png", b"\x7fELF" + bytes(200)))
    for side in (20_000, 60_000):
        bad(corpus.place(f"bomb-{side}.png", bomb(side)))
    for name, make in (
        ("dangling.png", lambda path: path.symlink_to(path.with_name("nowhere"))),
        ("loop.png", lambda path: path.symlink_to(path)),
        ("pipe.png", os.mkfifo),
        ("device.png", lambda path: path.symlink_to("/dev/zero")),
    ):
        path = corpus.folder / name
        make(path)
        bad(path)


def make_damaged(corpus: Corpus, cuts: int, flips: int) -> None:
    """Every kind of file, cut off at so many places, and with bits flipped in so many ways."""
    rng = random.Random(5)  # noqa: S311  test data
    whole = [(name, content) for name, content in every_format() if len(content) < 20_000]
    whole += [("jpeg.jpg", encoded(picture(), "JPEG"))] * 5
    for number in range(cuts):
        name, content = whole[number % len(whole)]
        corpus.either.append(corpus.place(f"cut/{number:04}-{name}", content[: rng.randrange(len(content))]))
    for number in range(flips):
        name, content = whole[number % len(whole)]
        flipped = bytearray(content)
        for _ in range(rng.randint(1, 8)):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        corpus.either.append(corpus.place(f"flipped/{number:04}-{name}", bytes(flipped)))


def bomb(side: int) -> bytes:
    """A PNG of some hundred kilobytes, of side x side black pixels: all of them are there."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    data = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, body) for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def make_corpus(folder: Path, cuts: int, flips: int) -> Corpus:
    corpus = Corpus(folder)
    for name, content in every_format():
        corpus.good.append(corpus.place(name, content))
    make_good(corpus)
    make_bad(corpus)
    make_damaged(corpus, cuts, flips)
    return corpus
