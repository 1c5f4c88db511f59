"""The examples, in a small setting: they learn what they say, and draw what they are asked for."""

import random
from pathlib import Path

import pytest
from PIL import Image

from examples import detect_shapes, segment_shapes
from examples.shapes import draw_scene

DOCS = Path(__file__).parent.parent / "docs" / "pictures"


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def check_picture(path: Path, name: str) -> None:
    """What was written has the size of the picture in the documentation, and is no empty sheet."""
    with Image.open(path) as result, Image.open(DOCS / name) as picture:
        assert result.size == picture.size
        assert min(low < high for low, high in result.getextrema())


def test_scenes_are_what_they_say() -> None:
    for seed in range(20):
        scene, again = (draw_scene(random.Random(seed), 64) for _ in range(2))  # noqa: S311  (pictures)
        assert scene.image.tobytes() == again.image.tobytes()
        assert 1 <= len(scene.boxes) == len(scene.labels) <= 3
        for box, label in zip(scene.boxes, scene.labels, strict=True):
            inside = scene.mask.crop(box)
            assert {value for _, value in inside.getcolors()} <= {0, label}
            assert inside.getbbox() == (0, 0, *inside.size)  # the box is tight
            scene.mask.paste(0, box)
        assert scene.mask.getbbox() is None  # nothing outside the boxes


@pytest.mark.slow
def test_shapes_are_found(tmp_path: Path) -> None:
    losses, recall, precision, overlap = detect_shapes.main(["--output", str(tmp_path / "x.png")])
    assert mean(losses[-10:]) < 0.4 * mean(losses[:10])
    assert recall > 0.9
    assert precision > 0.9
    assert overlap > 0.85
    check_picture(tmp_path / "x.png", "detections.png")


@pytest.mark.slow
def test_shapes_are_segmented(tmp_path: Path) -> None:
    for losses, overlaps in segment_shapes.main(["--output", str(tmp_path / "x.png")]).values():
        assert mean(losses[-10:]) < 0.3 * mean(losses[:10])
        assert min(overlaps) > 0.85
    check_picture(tmp_path / "x.png", "masks.png")
