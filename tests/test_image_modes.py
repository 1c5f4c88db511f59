"""Pictures of every mode as RGB: grey of all depths, floating point, alpha, palettes, other colour spaces."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded
from PIL import Image

from hardnet.images.read import load_image, to_rgb, upright_rgb
from hardnet.utils import log
from hardnet.utils.errors import ImageError


def chunk(kind: bytes, data: bytes, *, damage: bool = False) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ damage)


def png(width: int, depth: int, colour_type: int, row: bytes, transparent: bytes = b"") -> Image.Image:
    """A picture of one row, from a PNG file written by hand: Pillow cannot write all kinds that it reads."""
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


def test_numbers_without_an_agreed_scale_are_refused() -> None:
    for values in ((-1, 0), (0, 65_536)):
        with pytest.raises(ImageError, match=f"from {values[0]} to {values[1]}, beyond 16 bits"):
            to_rgb(Image.frombytes("I", (2, 1), struct.pack("=2i", *values)))
    with pytest.raises(ImageError, match="floating-point numbers"):
        to_rgb(Image.new("F", (2, 1), 0.5))


def test_alpha_is_composited_on_white() -> None:
    rgba = Image.frombytes("RGBA", (3, 1), bytes([10, 20, 30, 255, 10, 20, 30, 0, 0, 0, 0, 128]))
    assert colours(to_rgb(rgba)) == [(10, 20, 30), (255, 255, 255), (127, 127, 127)]
    assert colours(to_rgb(rgba.convert("RGBa")))[:2] == [(10, 20, 30), (255, 255, 255)]
    assert greys(to_rgb(Image.frombytes("LA", (3, 1), bytes([40, 255, 40, 0, 0, 128])))) == [40, 255, 127]
    assert greys(to_rgb(png(2, 16, 4, struct.pack(">4H", 25_700, 65_535, 25_700, 0)))) == [100, 255]


@pytest.mark.parametrize("transparency", [None, 1, bytes([255, 0, 255])])
def test_transparent_palette_entries_are_white(transparency: int | bytes | None) -> None:
    palette = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    image = Image.open(io.BytesIO(encoded(palette, **({} if transparency is None else {"transparency": transparency}))))
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


def tiff(bits: int, photometric: int, data: bytes, order: str = "<") -> io.BytesIO:
    """A grey TIFF file of one row of two pixels."""
    tags = (256, 257, 258, 259, 262, 273, 277, 278, 279)
    values = (2, 1, bits, 1, photometric, 8, 1, 1, len(data))
    content = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data)) + data
    content += struct.pack(f"{order}H", len(tags))
    content += b"".join(
        struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in zip(tags, values, strict=True)
    )
    return io.BytesIO(content + bytes(4))


@pytest.mark.parametrize(
    ("bits", "order", "values"),
    [
        (8, "<", bytes([0, 51])),
        (16, "<", struct.pack("<2H", 0, 51 * 257)),
        (16, ">", struct.pack(">2H", 0, 51 * 257)),
        (12, "<", bytes([0x00, 0x03, 0x33])),  # 0 and 819
    ],
)
def test_tiff_with_black_or_white_as_zero(bits: int, order: str, values: bytes) -> None:
    assert greys(load_image(tiff(bits, 1, values, order))) == [0, 51]
    if bits != 12:  # Pillow does not read these
        assert greys(load_image(tiff(bits, 0, values, order))) == [255, 204]


@pytest.mark.parametrize(
    ("depth", "row", "level"), [(2, b"\x1b", 2), (4, b"\x0f\xa3", 10), (8, b"\x00\x0a\xaa\xf0", 0xAA)]
)
def test_the_transparent_level_of_a_grey_png_of_few_bits(depth: int, row: bytes, level: int) -> None:
    plain = greys(to_rgb(png(4, depth, 0, row)))
    image = png(4, depth, 0, row, transparent=struct.pack(">H", level))
    assert greys(upright_rgb(image)) == greys(to_rgb(image)) == [*plain[:2], 255, plain[3]]


def test_dark_pictures_of_16_bits_are_named_once_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log, "LOGGED", set())
    xray = Image.frombytes("I;16", (3, 1), struct.pack("<3H", 0, 1638, 4095))
    for name in ("a.png", "b.png"):
        xray.save(tmp_path / name)
    assert greys(load_image(tmp_path / "a.png", bits=12)) == [0, 102, 255]
    assert not caplog.messages
    assert greys(load_image(tmp_path / "a.png")) == greys(load_image(tmp_path / "b.png")) == [0, 6, 16]
    [message] = caplog.messages
    assert message.startswith(f"{tmp_path / 'a.png'}: ")
    assert message.endswith("hardnet.load_image(path, bits=12)")
    with pytest.raises(ImageError, match="from 0 to 4095, beyond 11 bits"):
        load_image(tmp_path / "a.png", bits=11)
    with pytest.raises(ValueError, match="bits must be between 1 and 16"):
        load_image(tmp_path / "a.png", bits=17)
    monkeypatch.setattr(log, "LOGGED", set())
    upright_rgb(Image.frombytes("I", (2, 1), struct.pack("=2i", 0, 255)))
    assert caplog.messages[1].endswith("bits=8)")


@pytest.mark.parametrize("at", ["before", "after"])
@pytest.mark.parametrize(
    "text",
    [
        chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"tEXt", b"k\0value", damage=True),
    ],
    ids=["large text", "large profile", "damaged text"],
)
def test_png_with_texts_that_pillow_refuses(text: bytes, at: str) -> None:
    content = encoded(Image.new("RGB", (2, 2), (200, 0, 0)))
    where = content.index(b"IDAT" if at == "before" else b"IEND") - 4
    assert load_image(io.BytesIO(content[:where] + text + content[where:])).getpixel((0, 0)) == (200, 0, 0)
    if at == "before":
        with pytest.raises(ImageError, match="truncated"):
            load_image(io.BytesIO(content[:where] + text + content[where : where + 10]))
