"""The catalogue, its digests, and the checkpoint inside the package."""

import os
import re
from pathlib import Path

import pytest
import torch

from hardnet import Classifier, create_model, get_weights
from hardnet.weights.catalog import CATALOG, Digest, Source, WeightsRecord, identify
from hardnet.weights.download import fetch, find_cached

IMAGES = sorted((Path(__file__).parent.parent / "images" / "fashion_mnist").glob("*.png"))
WRONG = {"ankle-boot-00023.png": "Sandal", "dress-00032.png": "Trouser", "t-shirt-top-00027.png": "Shirt"}
"""The samples that the checkpoint classifies wrongly."""

# Of the six bytes b"hello\n", by `git hash-object`, `sha1sum` and `sha256sum`.
HELLO = b"hello\n"
SHA256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
DIGESTS = [
    Digest("git-blob-sha1", "ce013625030ba8dba906f756967f9e9ca394464a"),
    Digest("sha1", "f572d396fae9206628714fb2ce00f72e94f2258f"),
    Digest("sha256", SHA256),
    Digest("sha256-prefix", SHA256[:8]),
]


@pytest.mark.parametrize("record", CATALOG.values(), ids=str)
def test_records_are_complete(record: WeightsRecord) -> None:
    assert len(record.categories) == record.num_classes == len(record.meta["categories"])
    assert 0 < record.top5_error < record.top1_error < 100
    assert record.meta["reported_by"] == record.reported_by != ""
    assert record.provenance
    assert record.licence == "MIT"
    assert record.block_activation == ("relu" if str(record) == "hardnet85 IMAGENET1K_V2" else "relu6")
    assert str(record.preprocessing.crop) in repr(record.transforms())


def test_sources_are_the_published_ones() -> None:
    pairs = [(record, source) for record in CATALOG.values() for source in record.sources]
    lines = [f"{record} {source.digest.scheme}:{source.digest.value} {source.url}" for record, source in pairs]
    assert lines == (Path(__file__).parent / "golden" / "sources.txt").read_text().splitlines()
    names = [record.cache_filename(source) for record, source in pairs]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"hardnet-[a-z0-9_-]+\.pth", name) for name in names)


@pytest.mark.parametrize("digest", DIGESTS, ids=str)
def test_a_digest_matches_only_the_right_bytes(digest: Digest) -> None:
    assert digest.matches(HELLO)
    assert Digest(digest.scheme, digest.value.upper()).matches(HELLO)
    assert not any(digest.matches(other) for other in (b"", b"hello", b"hello\n\0", b"Hello\n"))
    for position, digit in enumerate(digest.value):
        wrong = digest.value[:position] + f"{int(digit, 16) ^ 1:x}" + digest.value[position + 1 :]
        assert not Digest(digest.scheme, wrong).matches(HELLO)
    assert not Digest(digest.scheme, digest.value[:-1]).matches(HELLO)


def test_content_is_identified_by_its_strongest_digest() -> None:
    def made(*digests: Digest) -> WeightsRecord:
        sources = tuple(Source(f"https://host.invalid/{n}.pth", digest) for n, digest in enumerate(digests))
        return WeightsRecord("hardnet68", "TEST", sources, "test", 1.0, 1.0, "test")

    none = Digest("sha1", "0" * 40)
    for digest in DIGESTS:
        record = made(none, digest)
        assert identify(HELLO, [made(none), record]) == (record, digest)
    assert identify(HELLO, [made(none)]) == (None, None)
    weak, strong = made(DIGESTS[3]), made(DIGESTS[1])
    assert identify(HELLO, [weak, strong]) == (strong, DIGESTS[1])


def test_the_shipped_checkpoint_needs_no_network_and_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    record = get_weights("hardnet39ds", "FASHION_MNIST")
    file = fetch(record)
    assert find_cached(record) == file
    assert len(file.content) <= 6_000_000
    assert not list(Path(os.environ["TORCH_HOME"]).rglob("*.pth"))
    model = create_model("hardnet39ds", weights="FASHION_MNIST", num_classes=3, in_chans=1)  # for fine-tuning
    assert model(torch.rand(2, 1, 64, 64)).shape == (2, 3)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # stored as float16
    assert model.weights_record is record


def test_the_shipped_checkpoint_classifies_the_samples(device: str) -> None:
    results = Classifier("hardnet39ds", weights="FASHION_MNIST", device=device).predict(IMAGES)
    labels = {path.name: result.top.label for path, result in zip(IMAGES, results, strict=True)}
    names = {label.lower().replace("/", "-").replace(" ", "-"): label for label in get_weights().categories}
    assert len(labels) == 30
    assert {name[:-10] for name in labels} == set(names)
    assert {name: label for name, label in labels.items() if names[name[:-10]] != label} == WRONG
