"""The catalogue: what can be recomputed is, and every record is complete."""

from __future__ import annotations

import re

import pytest
from conftest import MODELS

from hardnet.models.config import CONFIGS
from hardnet.weights.catalog import CATALOG, WeightsRecord

LENGTHS = {"git-blob-sha1": 40, "sha1": 40, "sha256": 64, "sha256-prefix": 8}


@pytest.fixture(params=CATALOG.values(), ids=str)
def record(request: pytest.FixtureRequest) -> WeightsRecord:
    return request.param


def test_which_there_are() -> None:
    imagenet = {(name, "IMAGENET1K_V1") for name in MODELS}
    retrained = {(name, "IMAGENET1K_V2") for name in ("hardnet39ds", "hardnet68ds", "hardnet85")}
    assert CATALOG.keys() == imagenet | retrained | {("hardnet39ds", "FASHION_MNIST")}


def test_records_are_complete(record: WeightsRecord) -> None:
    assert record.model in CONFIGS
    assert len(record.categories) == record.num_classes
    assert 0 < record.top5_error < record.top1_error < 100
    assert record.reported_by
    assert record.provenance
    assert record.licence == "MIT"
    assert record.block_activation == ("relu" if str(record) == "hardnet85 IMAGENET1K_V2" else "relu6")


def test_sources_are_pinned_strongest_first(record: WeightsRecord) -> None:
    assert record.sources
    for source in record.sources:
        assert source.url.startswith(("https://", "package:"))
        assert re.fullmatch(rf"[0-9a-f]{{{LENGTHS[source.digest.scheme]}}}", source.digest.value)
    strength = [list(LENGTHS).index(source.digest.scheme) for source in record.sources]
    assert strength == sorted(strength)
    assert [source.digest.weak for source in record.sources].count(True) <= 1


def test_imgclsmob_and_authors_names_carry_their_digest(record: WeightsRecord) -> None:
    """Both publishers put the first eight digits of the digest into the file's name."""
    for source in record.sources:
        if source.digest.scheme != "git-blob-sha1" and source.url.startswith("https://"):
            assert source.digest.value[:8] in source.filename


def test_cache_names_are_distinct_and_safe() -> None:
    names = [record.cache_filename(source) for record in CATALOG.values() for source in record.sources]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"hardnet-[a-z0-9_-]+\.pth", name) for name in names)
    digests = [source.digest.value for record in CATALOG.values() for source in record.sources]
    assert len(set(digests)) == len(digests)


def test_meta_says_who_reported(record: WeightsRecord) -> None:
    meta = record.meta
    assert len(meta["categories"]) == record.num_classes
    assert meta["reported_by"] == record.reported_by
    assert meta["top1_error"] == record.top1_error


def test_transforms_follow_the_record(record: WeightsRecord) -> None:
    transform = record.transforms()
    assert str(record.preprocessing.crop) in repr(transform)


def test_fashion_mnist_has_ten_classes_of_its_own() -> None:
    record = CATALOG["hardnet39ds", "FASHION_MNIST"]
    assert record.categories[0] == "T-shirt/top"
    assert record.categories[-1] == "Ankle boot"
    assert record.preprocessing.crop == 64
