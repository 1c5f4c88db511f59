"""The evaluation transform: torchvision's own pipeline to the last bit, and no memory bombs."""

import io
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import encoded, noise
from PIL import Image
from torchvision import transforms

import hardnet
from hardnet.cli import main
from hardnet.images.batches import Item, decode_ahead, expand, prepare
from hardnet.images.preprocess import MAX_ASPECT_RATIO, Preprocessing
from hardnet.images.read import load_image
from hardnet.utils.errors import ImageError

ROOT = Path(__file__).parent.parent
PHOTOGRAPHS = sorted((ROOT / "images").glob("*.jpg"))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def torchvision_pipeline(resize: int = 256, crop: int = 224, mean=MEAN, std=STD) -> transforms.Compose:
    steps = [transforms.Resize(resize), transforms.CenterCrop(crop), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize(mean, std)])


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.name)
def test_equals_torchvision_to_the_last_bit_on_photographs(path: Path) -> None:
    for image in (load_image(path), Image.open(path).convert("RGB")):
        pixels = Preprocessing()(image)
        assert pixels.shape == (3, 224, 224)
        assert pixels.dtype == torch.float32
        assert torch.equal(pixels, torchvision_pipeline()(image))


@pytest.mark.parametrize("options", [(256, 224, MEAN, STD), (100, 64, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))])
@pytest.mark.parametrize(
    "size",
    [(500, 333), (333, 500), (256, 256), (224, 224), (225, 223), (10, 13), (1, 1), (1000, 257), (32, 1), (3, 96)],
)
def test_equals_torchvision_to_the_last_bit_for_every_shape(size: tuple[int, int], options: tuple[Any, ...]) -> None:
    assert torch.equal(Preprocessing(*options)(noise(*size)), torchvision_pipeline(*options)(noise(*size)))


@pytest.mark.parametrize("size", [(101, 3), (10, 331), (600, 20_001), (1, 10_000), (50_000, 300)])
def test_of_a_long_picture_the_middle_is_resized(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    longest = MAX_ASPECT_RATIO * min(size)
    image = noise(*size)
    middle = transforms.CenterCrop((min(longest, image.height), min(longest, image.width)))(image)
    expected = torchvision_pipeline()(middle)
    sizes, original = [], Image.Image.resize

    def resize(self: Image.Image, size: tuple[int, int], *args: object) -> Image.Image:
        sizes.append(size)
        return original(self, size, *args)

    monkeypatch.setattr(Image.Image, "resize", resize)
    assert torch.equal(Preprocessing()(image), expected)
    [(width, height)] = sizes
    assert width * height <= 256 * 256 * MAX_ASPECT_RATIO


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 <= crop <= resize <= 16384 pixels is required, got \(224, 100\)"):
        Preprocessing(resize=100)
    with pytest.raises(ValueError, match="crop"):
        Preprocessing(crop=0)
    with pytest.raises(ValueError, match="std must be positive"):
        Preprocessing(std=(0.2, 0.0, 0.2))


def test_what_is_no_image_is_refused() -> None:
    for wrong in ("images/cat.jpg", torch.zeros(3, 8, 8), np.zeros((8, 8, 3), np.uint8), None):
        with pytest.raises(TypeError, match=rf"takes a Pillow image .*got {type(wrong).__name__}"):
            Preprocessing()(wrong)
    with pytest.raises(ImageError, match="no pixels: its size is 0 x 5"):
        Preprocessing()(Image.new("RGB", (0, 5)))


def jpeg(image: Image.Image, orientation: int = 1, claimed: tuple[int, int] | None = None, **options: object) -> bytes:
    """An encoded picture; ``claimed`` overwrites the size in the header, so that the rest is padding."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = bytearray(encoded(image, "JPEG", exif=exif, **{"quality": 90, **options}))
    if claimed:
        at = content.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0")
        assert content[at + 5 : at + 9] == struct.pack(">HH", image.height, image.width)
        content[at + 5 : at + 9] = struct.pack(">HH", claimed[1], claimed[0])
    return bytes(content)


def prepared(content: bytes, decode: str, resize: int = 32, crop: int = 28) -> torch.Tensor:
    transform = Preprocessing(resize=resize, crop=crop)
    return prepare(Item("a.jpg", content), transform, raw=True, decode=decode).float()


SIZES = [(512, 640), (320, 256), (601, 523), (203, 301), (131, 129), (128, 4097), (2065, 65), (64, 64), (33, 47)]
KINDS = [
    *itertools.product(["RGB"], [(301, 203)], range(1, 9), [{"subsampling": 2}]),
    *itertools.product(["RGB"], [(517, 601)], (2, 3, 6, 7), [{"subsampling": 0, "progressive": True}]),
    *itertools.product(["L"], SIZES[2:4], [1, 8], [{}, {"progressive": True}]),
    *itertools.product(["RGB"], SIZES, [1], [{"subsampling": 1}, {"subsampling": 2}]),
    *itertools.product(["CMYK"], SIZES[2:4], [5], [{"progressive": True}]),
]


@pytest.mark.parametrize(("mode", "size", "orientation", "options"), KINDS)
def test_fast_decoding_is_close_to_exact(
    mode: str, size: tuple[int, int], orientation: int, options: dict[str, object]
) -> None:
    photograph = load_image(ROOT / "images" / "coffee.jpg").resize(size, Image.Resampling.BICUBIC).convert(mode)
    content = jpeg(photograph, orientation, **options)
    scaled = min(size) >= (256 if options == {"subsampling": 1} else 128) and mode != "CMYK"
    assert (max(load_image(io.BytesIO(content), least_side=64).size) < max(size)) == scaled
    for crop in (28, 32):
        difference = (prepared(content, "fast", crop=crop) - prepared(content, "exact", crop=crop)).abs()
        assert difference.mean() < 1.3
        assert difference.max() <= 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("progressive", [False, True])
def test_fast_decoding_shows_nothing_of_the_padding(orientation: int, progressive: bool) -> None:
    grey = Image.new("RGB", (304, 272), (90, 90, 90))
    for claimed in ((297, 272), (304, 265), (303, 271)):
        junk = grey.copy()
        junk.paste((255, 255, 255), (claimed[0], 0, 304, 272))
        junk.paste((255, 255, 255), (0, claimed[1], 304, 272))
        content = jpeg(junk, orientation, claimed, quality=100, subsampling=0, progressive=progressive)
        for decode in ("exact", "fast"):
            assert (prepared(content, decode, crop=32) - 90).abs().max() <= 2


def test_fast_decoding_of_other_formats_and_of_the_first_picture_of_several() -> None:
    photograph = load_image(ROOT / "images" / "cat.jpg").resize((301, 203))
    for form, options in (("PNG", {}), ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (301, 203))]})):
        content = encoded(photograph, form, **options)
        difference = (prepared(content, "fast") - prepared(content, "exact")).abs()
        assert difference.max() <= (1 if form == "PNG" else 6)
    assert load_image(io.BytesIO(content), least_side=64).size == (151, 102)
    assert load_image(io.BytesIO(content), least_side=102).size == (301, 203)


@pytest.mark.parametrize(
    ("size", "decode", "hints"), [((1640, 1300), "exact", 1), ((1640, 1300), "fast", 0), ((8, 8), "exact", 0)]
)
def test_fast_decoding_is_suggested_once_where_large_pictures_take_the_time(
    size: tuple[int, int], decode: str, hints: int, caplog: pytest.LogCaptureFixture
) -> None:
    items = expand([encoded(Image.new("L", size))] * 33)
    assert len(list(decode_ahead(items, Preprocessing(), torch.nn.Identity(), 8, decode))) == 33
    assert [message.count("decode='fast'") for message in caplog.messages] == [1] * hints


def test_commands_and_classes_decode_as_they_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph = load_image(ROOT / "images" / "coffee.jpg").resize((601, 403), Image.Resampling.BICUBIC)
    path, results = tmp_path / "a.jpg", []
    path.write_bytes(jpeg(photograph))
    classifier = hardnet.Classifier("hardnet39ds", weights="FASHION_MNIST")
    extractor = hardnet.Extractor("hardnet39ds", weights="FASHION_MNIST")
    for decode in ("exact", "fast"):
        tensor = prepare(Item("a.jpg", path), classifier.transform, decode=decode)
        [result], [vector] = classifier.predict(tensor, topk=1), extractor.stream(tensor)
        arguments = [str(path), "--weights", "FASHION_MNIST", "--engine", "eager", "--decode", decode]
        assert main(["predict", *arguments, "--format", "json", "--topk", "1"]) == 0
        [[prediction]] = [row["predictions"] for row in json.loads(capsys.readouterr().out)]
        assert prediction["probability"] == pytest.approx(result.top.probability, abs=1e-6)
        assert main(["extract", *arguments, "--output", str(tmp_path / f"{decode}.jsonl")]) == 0
        row = json.loads((tmp_path / f"{decode}.jsonl").read_text())
        assert row["embedding"] == pytest.approx(vector.vector.tolist(), abs=1e-5)
        results.append((vector.vector, result.top.probability))
    (exact, first), (fast, second) = results
    assert (exact - fast).abs().max() > 1e-3
    assert abs(first - second) > 1e-5
    for decode, transform in (("fast", transforms.ToTensor()), ("quick", None)):
        with pytest.raises(ValueError, match="decode"):
            hardnet.Classifier("hardnet39ds", weights="FASHION_MNIST", transform=transform, decode=decode)
