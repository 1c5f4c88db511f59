"""Data sets for training: ImageFolder trees and the IDX files of Fashion-MNIST, missing and malformed ones by name."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
from training_data import idx_bytes, make_fashion_mnist, make_folder, picture

from hardnet.training import data
from hardnet.training.data import hold_out, open_evaluation, open_splits
from hardnet.training.errors import DataError
from hardnet.training.idx import read_idx
from hardnet.utils.errors import ImageError


def test_idx_files_are_read_plain_and_gzipped(tmp_path: Path) -> None:
    content = idx_bytes((2, 1, 3), bytes(range(6)))
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "zipped").write_bytes(gzip.compress(content))
    for name in ("plain", "zipped"):
        assert read_idx(tmp_path / name) == ((2, 1, 3), bytes(range(6)))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not an IDX file"),
        (b"PNG...", "not an IDX file"),
        (idx_bytes((2,), b"12", kind=0x0D), "type 0x0d"),
        (idx_bytes((2, 3), b"12345"), "6 values are announced ((2, 3)), 5 are there"),
        (idx_bytes((2,), b"123"), "2 values are announced ((2,)), 3 are there"),
        (idx_bytes((2, 3), b"")[:7], "header is cut off"),
        (gzip.compress(idx_bytes((2000,), bytes(2000)))[:20], "cannot be read"),
        (b"\x1f\x8b" + bytes(20), "cannot be read"),
    ],
)
def test_a_malformed_idx_file_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "some-idx"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(complaint)) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("place", [".", "FashionMNIST/raw", "raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_is_found_by_its_files(tmp_path: Path, place: str, zipped: bool) -> None:
    make_fashion_mnist(tmp_path / place, train=20, test=11, zipped=zipped)
    splits = open_splits(str(tmp_path))
    assert (len(splits.train), splits.val) == (20, None)
    image, label = splits.train.load(12)
    assert label == 2
    assert image.mode == "RGB"
    assert [channel.tobytes() for channel in image.split()] == [picture(2, 12, 28).tobytes()] * 3
    test = open_evaluation(str(tmp_path))
    assert len(test) == 11
    assert test.load(10)[1] == 0
    assert len(open_evaluation(str(tmp_path), split="train")) == 20
    assert splits.train.classes[9] == "Ankle boot"


def test_the_name_fashion_mnist_means_the_debian_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "FASHION_MNIST_FOLDER", tmp_path / "package")
    with pytest.raises(DataError, match="install Debian's package dataset-fashion-mnist"):
        open_splits("fashion-mnist")
    make_fashion_mnist(tmp_path / "package")
    assert len(open_splits("fashion-mnist").train) == 40
    assert len(open_evaluation("fashion-mnist")) == 13


def test_training_does_not_touch_the_test_images(tmp_path: Path) -> None:
    make_fashion_mnist(tmp_path)
    for path in tmp_path.glob("t10k*"):
        path.unlink()
    splits = open_splits(str(tmp_path), held_out=10)
    assert splits.val is not None
    assert (len(splits.train), len(splits.val)) == (30, 10)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte"):
        open_evaluation(str(tmp_path))


def test_fashion_mnist_files_that_do_not_belong_together(tmp_path: Path) -> None:
    make_fashion_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(idx_bytes((39,), bytes(39)))
    with pytest.raises(DataError, match=r"\(40, 28, 28\).*\(39,\)"):
        open_splits(str(tmp_path))
    labels.write_bytes(idx_bytes((40,), bytes([10] * 40)))
    with pytest.raises(DataError, match=r"train-labels.*class 10 is none of the 10"):
        open_splits(str(tmp_path))
    with pytest.raises(DataError, match="not 'val'"):
        open_evaluation(str(tmp_path), split="val")


def test_a_folder_gives_upright_rgb_images_in_the_order_of_the_names(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=3, images=2)
    make_folder(tmp_path, classes=3, images=1, split="val")
    splits = open_splits(str(tmp_path))
    assert splits.train.classes == ("class_0", "class_1", "class_2")
    assert [splits.train.load(index)[1] for index in range(6)] == [0, 0, 1, 1, 2, 2]
    assert splits.train.load(3)[0].tobytes() == picture(1, 1).convert("RGB").tobytes()
    assert splits.val is not None
    assert len(splits.val) == 3
    assert splits.mean == (0.485, 0.456, 0.406)


def test_what_is_evaluated_in_a_folder(tmp_path: Path) -> None:
    make_folder(tmp_path, images=2)
    make_folder(tmp_path, images=1, split="val")
    assert len(open_evaluation(str(tmp_path))) == 3
    assert len(open_evaluation(str(tmp_path), split="train")) == 6
    assert len(open_evaluation(str(tmp_path / "train"))) == 6
    with pytest.raises(DataError, match=r"test: no such folder"):
        open_evaluation(str(tmp_path), split="test")


def test_a_missing_or_malformed_tree_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder; a folder with train/CLASS/image"):
        open_splits(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=f"{re.escape(str(tmp_path / 'train'))}: no such folder; a folder with one sub"):
        open_splits(str(tmp_path))
    (tmp_path / "train").mkdir()
    picture(0, 0).save(tmp_path / "train" / "loose.png")
    with pytest.raises(DataError, match="train: holds no subfolders; the images are expected in one subfolder per"):
        open_splits(str(tmp_path))
    make_folder(tmp_path, classes=2, images=1)
    (tmp_path / "train" / "hollow").mkdir()
    with pytest.raises(DataError, match="hollow"):
        open_splits(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: is not a folder"):
        open_splits(str(tmp_path / "file"))


def test_training_and_validation_must_have_the_same_classes(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=3, images=1)
    make_folder(tmp_path, classes=2, images=1, split="val")
    with pytest.raises(DataError, match="hold different classes: class_2 in one only"):
        open_splits(str(tmp_path))


def test_holding_out_splits_by_the_seed_alone(tmp_path: Path) -> None:
    make_folder(tmp_path, images=8)
    source = open_splits(str(tmp_path)).train

    def pixels(part: data.ImageSource) -> set[bytes]:
        return {part.load(index)[0].tobytes() for index in range(len(part))}

    train, val = hold_out(source, 5, seed=1)
    assert (len(train), len(val)) == (19, 5)
    assert pixels(train).isdisjoint(pixels(val))
    assert pixels(train) | pixels(val) == pixels(source)
    assert pixels(hold_out(source, 5, seed=1)[1]) == pixels(val)
    assert pixels(hold_out(source, 5, seed=2)[1]) != pixels(val)
    for count in (0, 24):
        with pytest.raises(DataError, match=f"cannot hold out {count} of 24"):
            hold_out(source, count, seed=1)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path)
    source = open_splits(str(tmp_path)).train
    path = tmp_path / "train" / "class_0" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ImageError, match=re.escape(str(path))):
        source.load(3)
