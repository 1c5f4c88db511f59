"""Image files: read upright and in the right colours, or refused with a reason; folders."""

import io
import os
import struct
import sys
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded, noise
from PIL import Image, ImageFile

from hardnet.images.batches import expand
from hardnet.images.read import MAX_PIXELS, describe_left_out, find_images, load_image, upright_rgb
from hardnet.utils.errors import ImageError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="FIFOs, devices and odd names are POSIX features")
ORIENTATION = 0x0112
# How a camera held in each of these ways stores an upright scene: the inverse of what turns it upright.
TURNS = "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270"


def scene() -> np.ndarray:
    """48 x 80, another colour in each quarter: no turn or reflection of it looks the same."""
    values = np.zeros((48, 80, 3), dtype=np.uint8)
    values[:24, :40], values[:24, 40:] = (220, 30, 30), (30, 220, 30)
    values[24:, :40], values[24:, 40:] = (30, 30, 220), (220, 220, 220)
    return values


def jpeg(size: tuple[int, int] = (64, 48)) -> bytes:
    return encoded(noise(*size), "JPEG")


def stored(orientation: int) -> Image.Image:
    image = Image.fromarray(scene())
    return image if orientation == 1 else image.transpose(Image.Transpose[TURNS[orientation - 2]])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_upright_picture(tmp_path: Path, orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"photo.{form.lower()}"
    stored(orientation).save(path, form, exif=exif, **({"quality": 95, "subsampling": 0} if form == "JPEG" else {}))
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


@pytest.mark.parametrize("exif", [b"II*\0\x08\0\0\0" + b"\xff" * 40, b"MM\0*\0\0\0", b"not a TIFF header at all"])
@pytest.mark.filterwarnings("ignore")  # of Pillow
def test_malformed_exif_is_ignored(exif: bytes) -> None:
    content = encoded(Image.fromarray(scene()), "JPEG", exif=b"Exif\0\0" + exif)
    assert load_image(io.BytesIO(content)).size == (80, 48)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(tmp_path: Path, form: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"film.{form.lower()}"
    path.write_bytes(encoded(frames[0], form, save_all=True, append_images=frames[1:], lossless=True))
    assert Image.open(path).n_frames == 3
    assert load_image(path).getpixel((5, 5)) == (255, 0, 0)


def failure(path: object) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_truncated_and_corrupt_files_are_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(jpeg((640, 480))[:20_000])
    message = failure(path)
    assert message.startswith(f"{path}: cannot be read: ")
    assert "truncated" in message
    for content in (b"", b"<html>not found</html>"):
        path.write_bytes(content)
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


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self.size))
    assert "decompression bomb" in failure(io.BytesIO(png_of_claimed_size(100_000, 100_000)))
    assert failure(io.BytesIO(png_of_claimed_size(MAX_PIXELS + 1, 1))).startswith("the open file: is too large: ")
    assert not decoded
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS  # which is left alone


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert failure(tmp_path / "pipe.jpg").endswith("pipe.jpg: cannot be opened: Not a regular file")  # without waiting
    assert failure(tmp_path) == f"{tmp_path}: cannot be opened: Is a directory"
    assert failure(tmp_path / "gone.jpg") == f"{tmp_path / 'gone.jpg'}: no such file"
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    assert failure(tmp_path / "dangling.jpg").endswith("dangling.jpg: no such file")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    assert "self.jpg: cannot be opened: " in failure(tmp_path / "self.jpg")
    assert "null" in failure("photo\0.jpg")
    for url in ("https://example.org/cat.jpg", "s3://bucket/a b"):
        assert failure(url) == f"{url}: is an address, not a file: download it first"


@pytest.mark.parametrize("name", [b"two\nlines.jpg", b"caf\xe9.jpg", b"\x1b[31mred.jpg"])
def test_awkward_names_are_read_and_shown_in_one_line(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(jpeg())
    assert load_image(path).size == load_image(str(path)).size == (64, 48)
    assert list(find_images(tmp_path)) == [(path, None)]
    path.write_bytes(jpeg()[:100])
    message = failure(path)
    assert message.isprintable()
    message.encode("utf-8")


def test_an_open_file_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg())
    with path.open("rb") as file:
        assert load_image(file).tobytes() == load_image(file).tobytes() == load_image(path).tobytes()
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
    assert "is not an image in a format that Pillow decodes" in failure(path)
    assert not (tmp_path / "ran").exists()
    assert list(find_images(tmp_path)) == []


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path, _ in find_images(folder)]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_listing_is_recursive_sorted_and_keeps_to_images(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.jpg", "a.PNG", "c.JpEg", "d.webp", "e.mpo", "f.tif", "sub/z.gif", "sub/deep/y.bmp", "aa/x.jpg",
        "notes.txt", "README", "data.npy", "page.pdf", "film.mpg", "raw.CR2", "raw2.cr2",
        ".DS_Store", "._b.jpg", ".ipynb_checkpoints/x.jpg", "sub/._z.gif",
    )  # fmt: skip
    assert names(tmp_path) == [
        "a.PNG", "aa/x.jpg", "b.jpg", "c.JpEg", "d.webp", "e.mpo", "f.tif", "sub/deep/y.bmp", "sub/z.gif",
    ]  # fmt: skip
    left_out = Counter[str]()
    assert len(list(find_images(tmp_path, left_out=left_out))) == 9
    assert describe_left_out(left_out) == (
        "2 .cr2 (raw: export as JPEG or TIFF), 1 .pdf (vector graphics), 1 without an extension, 1 .mpg, 1 .npy, "
        "1 .txt, 1 hidden folder, 2 hidden images"
    )


def test_heic_is_read_like_a_jpeg(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    heif.from_pillow(stored(6)).save(tmp_path / "phone.heic", exif=exif.tobytes(), quality=95)
    assert names(tmp_path) == ["phone.heic"]
    image = load_image(tmp_path / "phone.heic")
    assert image.size == (80, 48)
    assert np.median(np.abs(np.asarray(image, dtype=int) - scene())) <= 3


def test_heic_without_its_package_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registered = {ext: name for ext, name in Image.registered_extensions().items() if name != "HEIF"}
    monkeypatch.setattr(Image, "EXTENSION", registered)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "phone.HEIC").write_bytes(b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(200))
    (tmp_path / "sent.jpg").write_bytes((tmp_path / "phone.HEIC").read_bytes())
    for name in ("phone.HEIC", "sent.jpg"):
        assert failure(tmp_path / name).endswith("in a format that Pillow decodes (pip install pillow-heif)")
    (tmp_path / "sent.jpg").unlink()
    [item] = expand([tmp_path])
    assert str(item.content) == f"{tmp_path}: no images in this folder; left out: 1 .heic (pip install pillow-heif)"
    (tmp_path / "photo.jpg").touch()
    assert [item.source for item in expand([tmp_path])] == [str(tmp_path / "photo.jpg")]
    assert caplog.messages == [f"{tmp_path}: left out: 1 .heic (pip install pillow-heif)"]


def test_listing_follows_links_once_and_drops_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "set/near.jpg", "set/folder.jpg/inside.jpg", "elsewhere/far.jpg")
    for link, target in (
        ("folder.jpg/up", "set"), ("linked", "elsewhere"), ("again", "elsewhere"), ("one.jpg", "set/near.jpg"),
        ("dangling.jpg", "gone.jpg"),
    ):  # fmt: skip
        (tmp_path / "set" / link).symlink_to(tmp_path / target)
    os.mkfifo(tmp_path / "set" / "pipe.jpg")
    files = ["again/far.jpg", "dangling.jpg", "folder.jpg/inside.jpg", "near.jpg", "one.jpg", "pipe.jpg"]
    assert names(tmp_path / "set") == files


def test_listing_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, message in (("gone", "No such file"), ("file", "Not a directory")):
        with pytest.raises(ImageError, match=f"{name}: cannot be listed: {message}"):
            names(tmp_path / name)
