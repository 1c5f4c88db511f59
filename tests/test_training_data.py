"""Data sets, and the batches made from them: the same images on any number of ranks and workers."""

import gzip
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import idx_bytes, make_fashion_mnist, make_folder, options, picture

from hardnet.images.preprocess import Preprocessing
from hardnet.images.read import load_image
from hardnet.training import data, shrinking, train
from hardnet.training.checkpoint import VALIDATION
from hardnet.training.data import ImageSource, Splits, open_data, open_evaluation, open_folder
from hardnet.training.fashion_mnist import read_idx
from hardnet.training.loading import (
    LabelledBatch,
    evaluation_batches,
    load_batches,
    training_batches,
    training_transform,
    worker_failures,
)
from hardnet.training.seeds import seeded
from hardnet.training.shrinking import keep_shrunk
from hardnet.utils.errors import DataError, ImageError, TrainingError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def opened(where: Path | str, **changes: Any) -> Splits:
    return open_data(options(Path(where), Path("o"), **changes))


def test_a_malformed_idx_file_is_named(tmp_path: Path) -> None:
    path, cut = tmp_path / "some-idx", gzip.compress(idx_bytes((2000,), bytes(2000)), mtime=0)[:20]
    for content in (b"", b"PNG...", idx_bytes((2, 3), b"12345"), idx_bytes((2, 3), b"")[:7], cut):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"some-idx: cannot be read as an IDX file"):
            read_idx(path)


@pytest.mark.parametrize(("place", "zipped"), [(".", True), ("FashionMNIST/raw", False), ("raw", False)])
def test_fashion_mnist_is_found_by_its_files(tmp_path: Path, place: str, zipped: bool) -> None:
    make_fashion_mnist(tmp_path / place, train=20, test=11, zipped=zipped)
    splits = opened(tmp_path)
    assert (len(splits.train), splits.val, splits.train.classes[9]) == (20, None, "Ankle boot")
    image, label = splits.train.load(12)
    assert (label, image.mode) == (2, "RGB")
    assert [channel.tobytes() for channel in image.split()] == [picture(2, 12, 28).tobytes()] * 3
    test = open_evaluation(str(tmp_path))
    assert (len(test), test.load(10)[1], len(open_evaluation(str(tmp_path), split="train"))) == (11, 0, 20)


def test_the_name_fashion_mnist_means_the_debian_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "FASHION_MNIST_FOLDER", tmp_path / "package")
    with pytest.raises(DataError, match="install Debian's package dataset-fashion-mnist"):
        opened("fashion-mnist")
    make_fashion_mnist(tmp_path / "package")
    assert len(opened("fashion-mnist").train) == 40
    assert len(open_evaluation("fashion-mnist")) == 13


def test_training_does_not_touch_the_test_images(tmp_path: Path) -> None:
    make_fashion_mnist(tmp_path)
    for path in tmp_path.glob("t10k*"):
        path.unlink()
    splits = opened(tmp_path, val_fraction=0.25)
    assert splits.val is not None
    assert (len(splits.train), len(splits.val)) == (30, 10)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte"):
        open_evaluation(str(tmp_path))
    with pytest.raises(DataError, match="not 'val'"):
        open_evaluation(str(tmp_path), split="val")
    for count, label in ((39, 0), (40, 10)):
        (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(idx_bytes((count,), bytes([label] * count)))
        with pytest.raises(DataError, match=rf"do not belong together.*\({count},\), the last class {label}"):
            opened(tmp_path)


def test_a_folder_gives_upright_rgb_images_in_the_order_of_the_names(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=3, images=2)
    make_folder(tmp_path, classes=3, images=1, split="val")
    splits = opened(tmp_path)
    assert splits.train.classes == ("class_0", "class_1", "class_2")
    assert [splits.train.load(index)[1] for index in range(6)] == [0, 0, 1, 1, 2, 2]
    assert splits.train.load(3)[0].tobytes() == picture(1, 1).convert("RGB").tobytes()
    assert splits.val is not None
    assert len(splits.val) == 3
    assert len(open_evaluation(str(tmp_path))) == 3
    assert len(open_evaluation(str(tmp_path / "train"))) == 6
    with pytest.raises(DataError, match=r"test: no such folder; choose a subfolder"):
        open_evaluation(str(tmp_path), split="test")


def test_a_missing_or_malformed_tree_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, complaint in (
        ("nowhere", r"nowhere is no folder; expected train/CLASS/image"),
        (".", r"no class folders; expected one subfolder of images per class"),
        ("file", "file is no folder"),
    ):
        with pytest.raises(DataError, match=complaint):
            opened(tmp_path / name)


def test_validation_may_lack_a_class_and_has_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_folder(tmp_path, classes=3, images=1)
    make_folder(tmp_path, classes=2, images=1, split="val")
    val = opened(tmp_path).val
    assert val is not None
    assert (len(val.classes), list(val.labels)) == (3, [0, 1])
    assert "no folders of the classes class_2" in caplog.text
    make_folder(tmp_path, classes=4, images=1, split="val")
    with pytest.raises(DataError, match="not among the 3 classes of the training images: class_3"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("folders", "validated", "evaluated"),
    [
        (("train", "valid"), "valid", "valid"),
        (("Train", "Val", "Test"), "Val", "Val"),
        (("TRAINING", "Validation"), "Validation", "Validation"),
        (("Training", "Testing"), "Training", "Testing"),
    ],
)
def test_the_usual_names_of_splits_are_no_classes(
    tmp_path: Path, folders: tuple[str, ...], validated: str, evaluated: str
) -> None:
    for folder in folders:
        make_folder(tmp_path, images=5, split=folder)
    splits = opened(tmp_path, val_fraction=0.2)
    assert splits.val is not None
    assert splits.train.classes == splits.val.classes == ("class_0", "class_1", "class_2")
    assert {name.split("/")[0] for name in splits.val.names} == {validated}
    assert {name.split("/")[0] for name in splits.train.names} == {folders[0]}
    assert open_evaluation(str(tmp_path)).names[0].split("/")[0] == evaluated
    assert len(open_evaluation(str(tmp_path), split="train")) == 15


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    for name in ("bus", "train", "val"):
        (tmp_path / name).mkdir()
        picture(0, 1).save(tmp_path / name / "1.png")
    assert opened(tmp_path).train.classes == ("bus", "train", "val")
    make_folder(tmp_path, split="train/freight")
    (tmp_path / "train" / "1.png").unlink()
    with pytest.raises(DataError, match="train is a split, with folders of classes in it, but val a class"):
        opened(tmp_path)


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, split="train")
    make_folder(tmp_path, split="training")
    with pytest.raises(DataError, match="both train and training are names of the split train"):
        opened(tmp_path)


def test_what_is_no_image_or_hidden_is_left_out_and_counted(tmp_path: Path) -> None:
    root = make_folder(tmp_path, split="plain", classes=2, images=2)
    for name in (".ipynb_checkpoints/1.png", "class_0/.ipynb_checkpoints/1.png", "class_0/._0.png", "list.csv"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"none")
    (root / "class_0" / "1.cr2").write_bytes(b"none")
    for suffix in ("gif", "jfif", "tga"):
        picture(1, 1).save(root / "class_1" / f"3.{suffix}", "JPEG" if suffix == "jfif" else None)
    splits = opened(root)
    assert splits.train.classes == ("class_0", "class_1")
    assert list(splits.train.labels) == [0, 0, 1, 1, 1, 1, 1]
    for text in ("2 hidden folders", "1 hidden image", "1 .cr2", "1 beside the class folders"):
        assert text in splits.left_out


def test_a_class_written_in_two_unicode_forms_is_one(tmp_path: Path) -> None:
    for name in ("caf\u00e9", "cafe\u0301", "tee"):
        (tmp_path / name).mkdir()
        picture(0, 1).save(tmp_path / name / "1.png")
    train = opened(tmp_path).train
    assert (train.classes, list(train.labels)) == (("caf\u00e9", "tee"), [0, 0, 1])


def test_damaged_images_are_named_before_training(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    (root / "class_1" / "3.png").write_bytes((root / "class_1" / "3.png").read_bytes()[:200])
    with pytest.raises(ImageError, match=r"^1 image cannot.*--skip-bad-images.*class_1/3\.png"):
        opened(tmp_path)
    splits = opened(tmp_path, skip_bad_images=True)
    assert (len(splits.train), splits.left_out) == (23, "1 damaged")
    with pytest.raises(DataError, match="lies in"):
        open_data(options(root, root / "runs" / "one"))


def held_out(where: Path, images: int, **changes: Any) -> list[str]:
    """The names of the validation images; all others are trained on."""
    splits = opened(where, **changes)
    assert splits.val is not None
    assert len(splits.train) + len(splits.val) == images
    assert set(splits.train.names).isdisjoint(splits.val.names)
    return list(splits.val.names)


def test_a_plain_folder_is_split_by_class_and_seed(tmp_path: Path) -> None:
    root = make_folder(tmp_path, images=8, split="plain")
    for index in range(1, 8):
        (root / "class_2" / f"{index}.png").unlink()
    names = held_out(root, 17, val_fraction=0.2, seed=1)
    assert [name.split("/")[0] for name in names] == ["class_0"] * 2 + ["class_1"] * 2  # a single image is trained on
    assert held_out(root, 17, val_fraction=0.2, seed=1) == names != held_out(root, 17, val_fraction=0.2, seed=2)
    assert len(held_out(root, 17, val_fraction=0.5)) == 8
    assert opened(root, val_fraction=0.0).val is None
    train(options(root, tmp_path / "run", epochs=1, seed=1, val_fraction=0.2))
    assert (tmp_path / "run" / VALIDATION).read_text().splitlines() == names


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    return open_folder(make_folder(tmp_path / "data"))


def steps(count: int, ranks: int, batch_size: int, accumulate: int = 1, epoch: int = 0) -> list[set[int]]:
    """The images of every step of the optimiser, all ranks together."""
    settings = options(Path("d"), Path("o"), batch_size=batch_size, accumulate=accumulate)
    by_rank = [training_batches(count, settings, epoch, rank, ranks) for rank in range(ranks)]
    merged = []
    for start in range(0, len(by_rank[0]), accumulate):
        parts = [index for batches in by_rank for batch in batches[start : start + accumulate] for index in batch]
        assert len(parts) == len(set(parts)) == ranks * batch_size * accumulate
        merged.append(set(parts))
    return merged


def test_a_step_sees_the_same_images_whatever_the_ranks() -> None:
    one = steps(101, ranks=1, batch_size=12)
    assert len(one) == 8
    assert len(set.union(*one)) == 96
    assert steps(101, ranks=2, batch_size=6) == one
    assert steps(101, ranks=3, batch_size=2, accumulate=2) == one
    assert steps(101, ranks=1, batch_size=12, epoch=1) != one
    settings = options(Path("d"), Path("o"), accumulate=2)
    whole = training_batches(50, settings, 3, rank=1, ranks=2)
    assert training_batches(50, settings, 3, rank=1, ranks=2, first_step=2) == whole[4:]  # resumed within the epoch


def test_augmentation_depends_on_seed_epoch_and_image_alone(source: ImageSource) -> None:
    def images(seed: int, epoch: int, workers: int, order: list[list[int]]) -> dict[int, torch.Tensor]:
        transform = training_transform(options(Path("d"), Path("o"), erase=0.5, auto_augment="trivial"), 32)
        batches = list(load_batches(source, transform, order, seed=(seed, epoch), workers=workers))
        return {
            index: image
            for indices, batch in zip(order, batches, strict=True)
            for index, image in zip(indices, batch.images, strict=True)
        }

    reference = images(1, 0, 0, [[0, 1, 2], [3, 4, 5]])
    again = images(1, 0, 2, [[5], [3, 1], [4, 2], [0]])
    assert all(torch.equal(reference[index], again[index]) for index in range(6))
    for seed, epoch in ((2, 0), (1, 1)):
        other = images(seed, epoch, 0, [[0, 1, 2, 3, 4, 5]])
        assert not any(torch.equal(reference[index], other[index]) for index in range(6))


def test_seeding_gives_the_generator_back_as_it_was() -> None:
    state = torch.get_rng_state()
    numbers = []
    for part in "aab":
        with seeded(1, part):
            numbers.append(float(torch.rand(1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert numbers[0] == numbers[1] != numbers[2]


def test_the_plain_training_transform_is_that_of_evaluation(source: ImageSource) -> None:
    image = source.load(0)[0].resize((50, 40))
    plain, mirrored = (
        training_transform(options(Path("d"), Path("o"), pad=0.0, flip=flip, mean=MEAN, std=STD), 40)
        for flip in (0.0, 1.0)
    )
    square = image.crop((0, 0, 40, 40))
    expected = Preprocessing(40, 40, MEAN, STD)(square)
    assert torch.equal(plain(square), expected)
    assert torch.equal(mirrored(square), expected.flip(-1))


@pytest.mark.parametrize(
    ("changes", "same_everywhere"),
    [
        ({"crop": "resized"}, False),
        ({"crop": "resized", "min_scale": 1.0}, None),
        ({"pad": 0.1}, False),
        ({"erase": 1.0}, False),
        ({"auto_augment": "rand"}, False),
        ({"auto_augment": "trivial"}, False),
        ({}, True),
    ],
)
def test_each_augmentation_varies_and_keeps_the_shape(
    source: ImageSource, changes: dict[str, Any], same_everywhere: bool | None
) -> None:
    settings = options(Path("d"), Path("o"), **{"flip": 0.0, "pad": 0.0, **changes})
    transform = training_transform(settings, 36)
    results = []
    for seed in range(6):
        with seeded(seed):
            results.append(transform(source.load(1)[0]))
    assert {tuple(result.shape) for result in results} == {(3, 36, 36)}
    if same_everywhere is not None:
        assert all(torch.equal(result, results[0]) for result in results) is same_everywhere


def test_large_images_are_shrunk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "data", classes=2, images=2, size=96)
    reads: list[Path] = []
    monkeypatch.setattr(shrinking, "load_image", lambda path, **options: reads.append(path) or load_image(path))
    data = keep_shrunk(opened(tmp_path / "data"), tmp_path / "run", 40)
    first = [data.train.load(index)[0] for index in range(4)]
    assert {image.size for image in first} == {(40, 40)}
    assert {path.parent.parent for path in reads} == {root}
    reads.clear()
    assert [data.train.load(index)[0].tobytes() for index in range(4)] == [image.tobytes() for image in first]
    assert {path.parent for path in reads} == {tmp_path / "run" / "cache"}
    picture(0, 5, 80).save(str(data.train.files[3]))
    assert data.train.load(3)[0].tobytes() != first[3].tobytes()
    assert keep_shrunk(opened(tmp_path / "data"), tmp_path / "run", 0).train.load(0)[0].size == (96, 96)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_names_its_path_or_is_counted(source: ImageSource, tmp_path: Path, workers: int) -> None:
    broken = tmp_path / "data" / "train" / "class_0" / "3.png"
    broken.write_bytes(b"\x89PNG and no more")
    order = [[0, 1], [2, 3]]

    def batches(skip: bool) -> list[LabelledBatch]:
        transform = Preprocessing(32, 32, MEAN, STD)
        return list(load_batches(source, transform, order, seed=(0, 0), workers=workers, skip_bad_images=skip))

    with pytest.raises(ImageError, match=re.escape(str(broken))) as caught:
        batches(skip=False)
    assert "Traceback" not in str(caught.value)
    results = batches(skip=True)
    assert [len(batch.bad) for batch in results] == [0, 1]
    assert str(broken) in results[1].bad[0]
    expected = Preprocessing(32, 32, MEAN, STD)(source.load(4)[0])
    assert torch.equal(results[1].images[1], expected)  # the next readable image stands in


def test_batches_come_without_shared_memory(
    source: ImageSource, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def batches() -> list[LabelledBatch]:
        return list(load_batches(source, Preprocessing(32, 32), [[0, 9], [5]], workers=1))

    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory")

    expected = batches()
    assert not caplog.text
    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    for batch, other in zip(batches(), expected, strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.labels, other.labels)
    assert "too little shared memory" in caplog.text


def test_a_killed_data_worker_is_one_line(source: ImageSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "load", lambda index: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(TrainingError, match=r"a data worker was killed.*--workers"), worker_failures():
        list(load_batches(source, Preprocessing(32, 32), [[0]], workers=1))


def test_evaluation_deals_out_whole_batches_and_leaves_nothing_out(source: ImageSource, tmp_path: Path) -> None:
    (tmp_path / "data" / "train" / "class_2" / "7.png").write_bytes(b"broken")  # the last one: 23 are left
    transform = Preprocessing(32, 32)

    def batches(ranks: int) -> list[list[LabelledBatch]]:
        dealt = [evaluation_batches(source, 5, rank, ranks) for rank in range(ranks)]
        return [list(load_batches(source, transform, each, skip_bad_images=True)) for each in dealt]

    (one,) = batches(1)
    assert [len(batch.labels) for batch in one] == [5, 5, 5, 5, 3]
    assert [len(batch.bad) for batch in one] == [0, 0, 0, 0, 1]
    for ranks in (2, 3, 7):
        dealt = batches(ranks)
        for index, batch in enumerate(one):
            other = dealt[index % ranks][index // ranks]
            assert torch.equal(other.images, batch.images)
            assert torch.equal(other.labels, batch.labels)
        assert sum(len(part) for part in dealt) == len(one)
    with pytest.raises(ImageError, match=r"7\.png"):
        list(load_batches(source, transform, evaluation_batches(source, 5)))
