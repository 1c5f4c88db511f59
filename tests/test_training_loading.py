"""Batches for training and evaluation: the same images whatever the number of ranks and workers, bad images named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from training_data import make_folder, options

from hardnet.images.preprocess import Preprocessing
from hardnet.training.data import FolderSource, ImageSource
from hardnet.training.loading import (
    Batch,
    evaluation_loader,
    iterate,
    training_batches,
    training_loader,
    training_transform,
)
from hardnet.training.seeds import derive_seed, seeded
from hardnet.utils.errors import ImageError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    return FolderSource(make_folder(tmp_path / "data"))


def steps(count: int, ranks: int, batch_size: int, accumulate: int = 1, epoch: int = 0) -> list[set[int]]:
    """The images of every step of the optimiser, all ranks together."""
    wanted = options(Path("d"), Path("o"), batch_size=batch_size, accumulate=accumulate)
    by_rank = [training_batches(count, wanted, epoch, rank=rank, ranks=ranks) for rank in range(ranks)]
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


def test_an_epoch_can_be_entered_at_any_step() -> None:
    wanted = options(Path("d"), Path("o"), accumulate=2)
    whole = training_batches(50, wanted, 3, rank=1, ranks=2)
    assert len(whole) == 6
    assert training_batches(50, wanted, 3, rank=1, ranks=2, first_step=2) == whole[4:]


def test_augmentation_depends_on_seed_epoch_and_image_alone(source: ImageSource) -> None:
    def images(seed: int, epoch: int, workers: int, order: list[list[int]]) -> dict[int, torch.Tensor]:
        wanted = options(Path("d"), Path("o"), seed=seed, workers=workers, erase=0.5, auto_augment="trivial")
        loader = training_loader(source, training_transform(wanted, 32, MEAN, STD), wanted, epoch, order)
        batches = list(iterate(loader, skip_bad_images=False))
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
    with seeded(1, "a"):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    with seeded(1, "a"):
        assert torch.equal(torch.rand(3), first)
    with seeded(1, "b"):
        assert not torch.equal(torch.rand(3), first)
    assert 0 <= derive_seed(1, "a") < 2**63


def test_the_plain_training_transform_is_that_of_evaluation(source: ImageSource) -> None:
    image = source.load(0)[0].resize((50, 40))
    plain = training_transform(options(Path("d"), Path("o"), pad=0.0, flip=0.0), 40, MEAN, STD)
    mirrored = training_transform(options(Path("d"), Path("o"), pad=0.0, flip=1.0), 40, MEAN, STD)
    square = image.crop((0, 0, 40, 40))
    expected = Preprocessing(40, 40, MEAN, STD)(square)
    assert torch.equal(plain(square), expected)
    assert torch.equal(mirrored(square), expected.flip(-1))


@pytest.mark.parametrize(
    ("changes", "same_everywhere"),
    [
        ({"crop": "resized", "flip": 0.0}, False),
        ({"crop": "resized", "flip": 0.0, "min_scale": 1.0}, None),
        ({"flip": 0.0, "pad": 0.1}, False),
        ({"flip": 0.0, "pad": 0.0, "erase": 1.0}, False),
        ({"flip": 0.0, "pad": 0.0, "auto_augment": "rand"}, False),
        ({"flip": 0.0, "pad": 0.0, "auto_augment": "trivial"}, False),
        ({"flip": 0.0, "pad": 0.0}, True),
    ],
)
def test_each_augmentation_varies_and_keeps_the_shape(
    source: ImageSource, changes: dict[str, object], same_everywhere: bool | None
) -> None:
    transform = training_transform(options(Path("d"), Path("o"), **changes), 36, MEAN, STD)
    results = []
    for seed in range(6):
        with seeded(seed):
            results.append(transform(source.load(1)[0]))
    assert {tuple(result.shape) for result in results} == {(3, 36, 36)}
    if same_everywhere is not None:
        assert all(torch.equal(result, results[0]) for result in results) is same_everywhere


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_names_its_path_or_is_counted(source: ImageSource, tmp_path: Path, workers: int) -> None:
    broken = tmp_path / "data" / "train" / "class_0" / "3.png"
    broken.write_bytes(b"\x89PNG and no more")
    order = [[0, 1], [2, 3]]

    def batches(skip: bool) -> list[Batch]:
        wanted = options(Path("d"), Path("o"), skip_bad_images=skip, pad=0.0, flip=0.0, workers=workers)
        loader = training_loader(source, training_transform(wanted, 32, MEAN, STD), wanted, 0, order)
        return list(iterate(loader, skip_bad_images=skip))

    with pytest.raises(ImageError, match=re.escape(str(broken))) as caught:
        batches(skip=False)
    assert "Traceback" not in str(caught.value)
    found = batches(skip=True)
    assert [len(batch.bad) for batch in found] == [0, 1]
    assert str(broken) in found[1].bad[0]
    expected = Preprocessing(32, 32, MEAN, STD)(source.load(4)[0])
    assert torch.equal(found[1].images[1], expected)  # the next readable image stands in


def test_evaluation_deals_out_whole_batches_and_leaves_nothing_out(source: ImageSource, tmp_path: Path) -> None:
    (tmp_path / "data" / "train" / "class_2" / "7.png").write_bytes(b"broken")  # the last one: 23 are left
    transform = Preprocessing(32, 32)

    def batches(ranks: int) -> list[list[Batch]]:
        loaders = (evaluation_loader(source, transform, batch_size=5, rank=rank, ranks=ranks) for rank in range(ranks))
        return [list(iterate(loader, skip_bad_images=True)) for loader in loaders]

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
        list(iterate(evaluation_loader(source, transform, batch_size=5), skip_bad_images=False))
