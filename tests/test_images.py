"""Image files: read upright and in the right colours, or refused with a reason; folders."""

from __future__ import annotations

import io
import logging
import os
import socket
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from hardnet.images.read import MAX_PIXELS, list_images, load_image, to_rgb, upright_rgb
from hardnet.utils.errors import ImageError
from hardnet.utils.text import printable

pytestmark = pytest.mark.skipif(os.name != "posix", reason="FIFOs, devices and odd names are POSIX features")
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


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(tmp_path: Path, form: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"film.{form.lower()}"
    frames[0].save(
        path, form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {})
    )
    assert Image.open(path).n_frames == 3
    assert load_image(path).getpixel((5, 5)) == (255, 0, 0)


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
    assert failure(tmp_path / "pipe.jpg").endswith("pipe.jpg: is not a regular file")  # and does not hang
    (tmp_path / "folder.jpg").mkdir()
    assert failure(tmp_path / "folder.jpg").endswith("folder.jpg: is a folder")
    assert failure("/dev/zero") == "/dev/zero: is not a regular file"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        assert failure(tmp_path / "socket.jpg").endswith("is not a regular file")


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


def png(width: int, depth: int, colour_type: int, row: bytes, transparent: bytes = b"") -> Image.Image:
    """A picture of one row, from a PNG file written by hand: Pillow cannot write all kinds that it reads."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0))
    if transparent:
        content += chunk(b"tRNS", transparent)
    content += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return Image.open(io.BytesIO(content))


def colours(image: Image.Image) -> list[tuple[int, ...]]:
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def greys(image: Image.Image) -> list[int]:
    assert all(len(set(pixel)) == 1 for pixel in colours(image))
    return [pixel[0] for pixel in colours(image)]


def test_grey_of_every_depth() -> None:
    assert greys(to_rgb(Image.frombytes("L", (3, 1), bytes([0, 77, 255])))) == [0, 77, 255]
    assert greys(to_rgb(png(8, 1, 0, b"\xa0"))) == [255, 0, 255, 0, 0, 0, 0, 0]
    values = [0, 128, 129, 257, 25_700, 32_768, 65_406, 65_407, 65_535]  # scaled, not clipped
    image = png(len(values), 16, 0, struct.pack(f">{len(values)}H", *values))
    assert greys(to_rgb(image)) == [round(value / 257) for value in values] == [0, 0, 1, 1, 100, 128, 254, 255, 255]
    for mode, order in (("I;16", "<H"), ("I;16L", "<H"), ("I;16B", ">H"), ("I", "=i")):
        image = Image.frombytes(mode, (4, 1), b"".join(struct.pack(order, value) for value in (0, 257, 25_700, 65_535)))
        assert greys(to_rgb(image)) == [0, 1, 100, 255]
    assert colours(to_rgb(png(1, 16, 2, struct.pack(">3H", 25_700, 65_535, 0)))) == [(100, 255, 0)]


@pytest.mark.parametrize("values", [(-1, 0), (0, 65_536)])
def test_integers_beyond_sixteen_bits_are_refused(values: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"from {values[0]} to {values[1]}, beyond 16 bits"):
        to_rgb(Image.frombytes("I", (2, 1), struct.pack("=2i", *values)))


def floats(*values: float) -> Image.Image:
    return Image.frombytes("F", (len(values), 1), struct.pack(f"={len(values)}f", *values))


def test_floats_from_0_to_1_or_from_0_to_255() -> None:
    assert greys(to_rgb(floats(0, 0.25, 1))) == [0, 64, 255]
    assert greys(to_rgb(floats(0, 0.25, 100.6, 255))) == [0, 0, 101, 255]


@pytest.mark.parametrize("value", [-0.1, 255.5, float("nan"), float("inf")])
def test_floats_without_a_meaning_are_refused(value: float) -> None:
    with pytest.raises(ImageError, match="expected 0 to 1 or 0 to 255"):
        to_rgb(floats(0.5, value, 0.5))


def test_alpha_is_composited_on_white() -> None:
    rgba = Image.frombytes("RGBA", (3, 1), bytes([10, 20, 30, 255, 10, 20, 30, 0, 0, 0, 0, 128]))
    assert colours(to_rgb(rgba)) == [(10, 20, 30), (255, 255, 255), (127, 127, 127)]
    assert colours(to_rgb(rgba.convert("RGBa")))[:2] == [(10, 20, 30), (255, 255, 255)]


def test_grey_with_alpha() -> None:
    image = Image.frombytes("LA", (3, 1), bytes([40, 255, 40, 0, 0, 128]))
    assert greys(to_rgb(image)) == [40, 255, 127]
    assert greys(to_rgb(image.convert("La"))) == [40, 255, 127]
    assert greys(to_rgb(png(2, 16, 4, struct.pack(">4H", 25_700, 65_535, 25_700, 0)))) == [100, 255]


def palette_image() -> Image.Image:
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    return image


@pytest.mark.parametrize("transparency", [None, 1, bytes([255, 0, 255])])
def test_transparent_palette_entries_are_white(transparency: int | bytes | None) -> None:
    stored = io.BytesIO()
    palette_image().save(stored, "PNG", **({} if transparency is None else {"transparency": transparency}))
    image = Image.open(stored)
    assert image.mode == "P"
    middle = (0, 200, 0) if transparency is None else (255, 255, 255)
    assert colours(to_rgb(image)) == [(200, 0, 0), middle, (0, 0, 200)]


def test_transparent_colour_is_white() -> None:
    rgb = png(2, 8, 2, bytes([1, 2, 3, 4, 5, 6]), transparent=struct.pack(">3H", 1, 2, 3))
    assert colours(to_rgb(rgb)) == [(255, 255, 255), (4, 5, 6)]
    assert greys(to_rgb(png(2, 8, 0, bytes([7, 9]), transparent=struct.pack(">H", 7)))) == [255, 9]
    assert greys(to_rgb(png(8, 1, 0, b"\xf0", transparent=struct.pack(">H", 0)))) == [255] * 8
    sixteen = png(3, 16, 0, struct.pack(">3H", 0, 257, 258), transparent=struct.pack(">H", 257))
    assert greys(to_rgb(sixteen)) == [0, 255, 1]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_other_colour_spaces(mode: str) -> None:
    colour = (200, 60, 30)
    converted = Image.new("RGB", (4, 4), colour).convert(mode)
    assert converted.mode == mode
    assert np.abs(np.subtract(colours(to_rgb(converted))[0], colour)).max() <= 2


def test_the_result_is_new_and_without_metadata() -> None:
    image = Image.new("RGB", (2, 2))
    image.info["transparency"] = (9, 9, 9)
    image.info["exif"] = b"Exif\0\0"
    result = to_rgb(image)
    result.putpixel((0, 0), (1, 1, 1))
    assert image.getpixel((0, 0)) == (0, 0, 0)
    assert result.info == {}
    assert set(image.info) == {"transparency", "exif"}


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in list_images(folder)]


def test_listing_is_recursive_sorted_and_keeps_to_images(tmp_path: Path) -> None:
    for name in (
        "b.jpg", "a.PNG", "c.JpEg", "d.webp", "e.mpo", "f.tif", "sub/z.gif", "sub/deep/y.bmp", "aa/x.jpg",
        "notes.txt", "README", "data.npy", "page.pdf", "film.mpg", "table.h5",
        ".DS_Store", "._b.jpg", ".hidden/x.jpg", "sub/._z.gif",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == [
        "a.PNG", "aa/x.jpg", "b.jpg", "c.JpEg", "d.webp", "e.mpo", "f.tif", "sub/deep/y.bmp", "sub/z.gif",
    ]  # fmt: skip
    assert list(list_images(str(tmp_path))) == list(list_images(tmp_path))


def test_listing_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "set" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.jpg").touch()
    (tmp_path / "set" / "near.jpg").touch()
    (tmp_path / "set" / "sub" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "one.jpg").symlink_to(tmp_path / "set" / "near.jpg")
    assert names(tmp_path / "set") == ["again/far.jpg", "near.jpg", "one.jpg"]


def test_listing_names_what_cannot_be_read_instead_of_dropping_it(tmp_path: Path) -> None:
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg" / "inside.jpg").touch()
    assert names(tmp_path) == ["dangling.jpg", "folder.jpg/inside.jpg", "pipe.jpg"]


def test_listing_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone: cannot be listed: No such file"):
        list(list_images(tmp_path / "gone"))
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match=r"file: cannot be listed: Not a directory"):
        list(list_images(tmp_path / "file"))
