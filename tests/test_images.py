"""Reading files: upright, right in colour, and refused with a reason where they are damaged or dangerous."""

from __future__ import annotations

import io
import logging
import os
import socket
import stat
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from hardnet.images.read import MAX_PIXELS, list_images, load_image, upright_rgb
from hardnet.utils.errors import ImageError
from hardnet.utils.text import printable

ROOT = Path(__file__).parent.parent
ORIENTATION = 0x0112
# How a camera held in each of these ways stores an upright scene: the inverse of what turns it upright.
STORED = {
    1: lambda scene: scene,
    2: lambda scene: scene[:, ::-1],
    3: lambda scene: scene[::-1, ::-1],
    4: lambda scene: scene[::-1],
    5: lambda scene: scene.transpose(1, 0, 2),
    6: lambda scene: np.rot90(scene, 1),
    7: lambda scene: scene[::-1, ::-1].transpose(1, 0, 2),
    8: lambda scene: np.rot90(scene, -1),
}


def scene() -> np.ndarray:
    """48 x 80, another colour in each quarter: no turn or reflection of it looks the same."""
    values = np.zeros((48, 80, 3), dtype=np.uint8)
    values[:24, :40], values[:24, 40:] = (220, 30, 30), (30, 220, 30)
    values[24:, :40], values[24:, 40:] = (30, 30, 220), (220, 220, 220)
    return values


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stored = io.BytesIO()
    image.save(stored, form, **options)
    return stored.getvalue()


def jpeg(size: tuple[int, int] = (64, 48)) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return encoded(Image.fromarray(values), "JPEG")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_exif_orientation_gives_the_upright_picture(tmp_path: Path, orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"photo.{form.lower()}"
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](scene())))
    stored.save(path, form, exif=exif, **({"quality": 95, "subsampling": 0} if form == "JPEG" else {}))
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (80, 48))
    difference = np.abs(np.asarray(image, dtype=int) - scene())
    assert np.median(difference) <= 3
    assert (difference > 40).mean() < 0.03  # the edges between the quarters, blurred by the lossy formats
    # Turned once and for all: nothing is left that would turn it again.
    assert upright_rgb(image).tobytes() == image.tobytes()
    # An opened image, given as such, is treated as its file is.
    with Image.open(path) as opened:
        assert upright_rgb(opened).tobytes() == image.tobytes()


def test_the_rotated_photograph_shows_what_the_upright_one_shows() -> None:
    stored = Image.open(ROOT / "images" / "coffee_rotated.jpg")
    assert stored.getexif()[ORIENTATION] == 6
    assert stored.size == (400, 600)
    turned, upright = load_image(ROOT / "images" / "coffee_rotated.jpg"), load_image(ROOT / "images" / "coffee.jpg")
    assert turned.size == upright.size == (600, 400)
    assert np.abs(np.asarray(turned, dtype=int) - np.asarray(upright, dtype=int)).mean() < 4


def test_sample_photographs_are_small_and_credited() -> None:
    readme = (ROOT / "images" / "README.md").read_text(encoding="utf-8")
    paths = list(list_images(ROOT / "images"))
    assert len(paths) >= 4
    for path in paths:
        assert f"`{path.name}`" in readme or f"`{path.parent.name}/`" in readme
        assert path.stat().st_size <= 100 * 1024
        assert max(Image.open(path).size) <= 640


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0" + b"II*\0\x08\0\0\0" + b"\xff" * 40,
        b"Exif\0\0MM\0*" + b"\0" * 3,
        b"Exif\0\0not a TIFF header at all",
    ],
)
def test_malformed_exif_is_ignored_and_logged(tmp_path: Path, exif: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(Image.fromarray(scene()), "JPEG", exif=exif))
    with caplog.at_level(logging.INFO, logger="hardnet"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow may have a word to say of its own
        image = load_image(path)
    assert image.size == (80, 48)
    if b"not a TIFF" in exif:
        assert "photo.jpg: its EXIF data are malformed and were ignored" in caplog.text


@pytest.mark.parametrize("value", [0, 9, 77])
def test_orientations_that_do_not_exist_are_ignored(tmp_path: Path, value: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    path = tmp_path / "photo.png"
    Image.fromarray(scene()).save(path, exif=exif)
    assert np.array_equal(np.asarray(load_image(path)), scene())


def test_cmyk_jpeg_has_about_the_right_colour(tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"
    Image.new("RGB", (32, 32), (200, 60, 30)).convert("CMYK").save(path, quality=95)
    assert Image.open(path).mode == "CMYK"
    assert np.abs(np.subtract(load_image(path).getpixel((16, 16)), (200, 60, 30))).max() <= 6


def test_progressive_jpeg_is_the_baseline_one(tmp_path: Path) -> None:
    with Image.open(ROOT / "images" / "cat.jpg") as image:
        image.save(tmp_path / "base.jpg", quality=80)
        image.save(tmp_path / "progressive.jpg", quality=80, progressive=True)
    assert Image.open(tmp_path / "progressive.jpg").info.get("progressive")
    assert load_image(tmp_path / "base.jpg").tobytes() == load_image(tmp_path / "progressive.jpg").tobytes()


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(tmp_path: Path, form: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"film.{form.lower()}"
    frames[0].save(
        path, form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {})
    )
    assert Image.open(path).n_frames == 3
    assert load_image(path).getpixel((5, 5)) == (255, 0, 0)


def test_sixteen_bit_and_transparent_files(tmp_path: Path) -> None:
    Image.frombytes("I;16", (2, 1), struct.pack("<2H", 25_700, 65_535)).save(tmp_path / "deep.png")
    assert load_image(tmp_path / "deep.png").getpixel((0, 0)) == (100, 100, 100)
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    gif = Image.new("P", (2, 2), 0)
    gif.putpalette([9, 9, 9, 200, 0, 0])
    gif.putpixel((1, 1), 1)
    gif.save(tmp_path / "clear.gif", transparency=0)
    assert load_image(tmp_path / "clear.gif").getpixel((0, 0)) == (255, 255, 255)
    assert load_image(tmp_path / "clear.gif").getpixel((1, 1)) == (200, 0, 0)


def test_threads_that_share_an_opened_image_load_it_one_after_the_other() -> None:
    image = Image.fromarray(scene())
    original, inside, together, loaded = image.load, [], [], threading.Event()

    def load() -> object:
        if not loaded.is_set():
            inside.append(1)
            together.append(len(inside))
            time.sleep(0.05)  # time for the others to come in
            inside.pop()
            loaded.set()
        return original()

    image.load = load
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: upright_rgb(image).tobytes(), range(4)))
    assert results == [scene().tobytes()] * 4
    assert together == [1]


def failure(path: object, **options: int) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_truncated_and_corrupt_files_are_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(jpeg((640, 480))[:20_000])
    message = failure(path)
    assert message.startswith(f"{path}: cannot be read: ")
    assert "truncated" in message
    path.write_bytes(b"")
    assert failure(path) == f"{path}: is not an image in a format that Pillow decodes"
    path.write_text("<html>not found</html>")
    assert failure(path) == f"{path}: is not an image in a format that Pillow decodes"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "JPEG2000"])
def test_whatever_is_damaged_the_error_is_an_image_error(tmp_path: Path, form: str) -> None:
    random = np.random.default_rng(1)
    whole = encoded(Image.fromarray(scene()), form)
    path = tmp_path / "damaged"
    assert load_image(io.BytesIO(whole)).mode == "RGB"
    failures = []
    for _ in range(40):
        damaged = bytearray(whole[: random.integers(1, len(whole) + 1)])
        for position in random.integers(0, len(damaged), 6):
            damaged[position] = random.integers(0, 256)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of some kinds of damage
            try:
                assert load_image(path).mode == "RGB"
            except ImageError as error:
                failures.append(str(error))
    assert len(failures) >= 5
    assert all(message.startswith(f"{path}: ") and "\n" not in message for message in failures)


def png_of_claimed_size(width: int, height: int) -> bytes:
    """A small PNG file whose header claims another size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    whole = encoded(Image.new("RGB", (4, 4)))
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


@pytest.mark.parametrize("size", [(100_000, 100_000), (9460, 9460), (MAX_PIXELS + 1, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert size[0] * size[1] > MAX_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_claimed_size(*size))
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self.size))
    limit = Image.MAX_IMAGE_PIXELS
    assert failure(path).startswith(f"{path}: is too large: ")
    assert not decoded
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_also_where_warnings_are_errors(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of_claimed_size(10_000, 10_000))
    assert "is too large" in failure(tmp_path / "bomb.png")


def test_the_limit_is_the_callers_choice(tmp_path: Path) -> None:
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS  # unless someone has changed Pillow's
    path = tmp_path / "photo.png"
    Image.new("RGB", (10, 10)).save(path)
    assert load_image(path, max_pixels=100).size == (10, 10)
    assert failure(path, max_pixels=99) == (
        f"{path}: is too large: 10 x 10 pixels, the limit is 99 (max_pixels of load_image)"
    )


def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo(tmp_path / "pipe.jpg")
    assert failure(tmp_path / "pipe.jpg").endswith("pipe.jpg: is a FIFO, not a regular file")  # and does not hang
    (tmp_path / "folder.jpg").mkdir()
    assert failure(tmp_path / "folder.jpg").endswith("folder.jpg: is a folder, not a regular file")
    assert failure("/dev/zero") == "/dev/zero: is a device, not a regular file"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        assert failure(tmp_path / "socket.jpg").endswith("is a socket, not a regular file")


def test_a_fifo_that_is_put_in_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg())
    real = stat.S_ISREG

    def swapped(mode: int) -> bool:  # after the look at it, before it is opened
        if real(mode):
            path.unlink()
            os.mkfifo(path)
        return real(mode)

    monkeypatch.setattr("hardnet.images.stat.S_ISREG", swapped)
    assert failure(path) == f"{path}: cannot be opened: Not a regular file"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert failure(tmp_path / "gone.jpg") == f"{tmp_path / 'gone.jpg'}: no such file"
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    assert failure(tmp_path / "dangling.jpg").endswith("dangling.jpg: no such file")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    assert "self.jpg: cannot be opened: " in failure(tmp_path / "self.jpg")
    assert "null" in failure("photo\0.jpg")
    assert failure("") == "the path of the image is empty"


@pytest.mark.parametrize("url", ["https://example.org/cat.jpg", "http://example.org/a b", "s3://bucket/cat.jpg"])
def test_addresses_are_told_from_files(url: str) -> None:
    assert failure(url) == f"{url}: is an address, not a file: download it first"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(jpeg())

    def refuse(path: str, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", path)  # as for anyone but root

    monkeypatch.setattr(os, "open", refuse)
    assert failure(path) == f"{path}: cannot be opened: Permission denied"


@pytest.mark.parametrize("name", [b"with space.jpg", b"two\nlines.jpg", b"caf\xe9.jpg", b"\x1b[31mred.jpg", b"-x.jpg"])
def test_awkward_names_are_read_and_shown_in_one_line(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(jpeg())
    assert load_image(path).size == (64, 48)
    assert load_image(str(path)).size == (64, 48)
    assert list(list_images(tmp_path)) == [path]
    path.write_bytes(jpeg()[:100])
    message = failure(path)
    assert message.isprintable()
    message.encode("utf-8")


def test_printable() -> None:
    assert printable("a\nb\x1b\udce9 é ☕") == "a\\nb\\x1b\\xe9 é ☕"


def test_an_open_file_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg())
    with path.open("rb") as file:
        first = load_image(file)
        assert not file.closed
        assert load_image(file).tobytes() == first.tobytes() == load_image(path).tobytes()
    assert failure(io.BytesIO(b"nothing")).startswith("the open file: is not an image")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def iptc(wrapped: bytes) -> bytes:
    """A file in IPTC's format that says that its picture is a JPEG."""
    size = struct.pack(">H", 10)
    fields = ((3, 60, b"\1\0"), (3, 20, size), (3, 30, size), (3, 120, b"\5"), (8, 10, wrapped))
    return b"".join(struct.pack(">BBBH", 0x1C, *kind, len(content)) + content for *kind, content in fields)


@pytest.mark.parametrize(("name", "content"), [("page.eps", POSTSCRIPT), ("page.iim", iptc(POSTSCRIPT))])
def test_postscript_is_never_handed_to_an_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    interpreter = tmp_path / "gs"
    interpreter.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    interpreter.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / name
    path.write_bytes(content)
    with Image.open(path) as image:
        assert image.format in ("EPS", "IPTC")  # Pillow would take it
    assert failure(path).endswith("is not an image in a format that Pillow decodes")
    assert not (tmp_path / "ran").exists()
    assert list(list_images(tmp_path)) == []


@pytest.mark.filterwarnings("ignore:Image was not the expected size")
def test_a_large_picture_in_a_small_icon_is_refused(tmp_path: Path) -> None:
    inner = io.BytesIO()
    Image.new("L", (300, 400)).save(inner, "PNG")
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 8, len(inner.getvalue()), 22)
    path = tmp_path / "x.ico"
    path.write_bytes(struct.pack("<HHH", 0, 1, 1) + entry + inner.getvalue())
    assert "is too large: 300 x 400 pixels" in failure(path, max_pixels=100_000)
