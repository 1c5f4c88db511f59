"""Checkpoints made on the spot that stand in for the catalogue's, so that the verified loader has its way offline."""

import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import golden_state

from hardnet.weights.catalog import CATALOG, Digest, DigestScheme, Source, WeightsRecord
from hardnet.weights.download import cache_dir

WRONG = "not the file with the digest sha256:"


def publish(monkeypatch: pytest.MonkeyPatch, folder: Path, model: str, tag: str = "IMAGENET1K_V1") -> WeightsRecord:
    """Let a record of the catalogue stand for the golden weights, with a true digest, in a mirror and offline."""
    file = folder / f"{model}-{tag}.pth"
    torch.save(golden_state(model), file)
    digest = Digest("sha256", hashlib.sha256(file.read_bytes()).hexdigest())
    source = Source(f"https://example.invalid/{file.name}", digest)
    record = replace(CATALOG[model, tag], sources=(source,))
    monkeypatch.setitem(CATALOG, (model, tag), record)
    monkeypatch.setenv("HARDNET_MIRROR", str(folder))
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    return record


def checkpoint(seed: int) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.rand(5000, generator=torch.Generator().manual_seed(seed))}, buffer)
    return buffer.getvalue()


def packed(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


GOOD, OTHER = checkpoint(0), checkpoint(1)
ZIPPED = packed(("w.pth", GOOD))
DIGESTS: dict[DigestScheme, str] = {
    "sha256": hashlib.sha256(GOOD).hexdigest(),
    "sha256-prefix": hashlib.sha256(GOOD).hexdigest()[:8],
    "sha1": hashlib.sha1(GOOD).hexdigest(),  # noqa: S324  a digest of the catalogue
    "git-blob-sha1": hashlib.sha1(b"blob %d\0" % len(GOOD) + GOOD).hexdigest(),  # noqa: S324
}


def record_of(*urls: str, scheme: DigestScheme = "sha256") -> WeightsRecord:
    sources = tuple(Source(url, Digest(scheme, DIGESTS[scheme])) for url in urls)
    return WeightsRecord("hardnet68", "TEST_V1", sources, "made by the tests", 1.0, 0.1, "the tests")


def cached_names() -> list[str]:
    """The files in the cache, without the lock."""
    return sorted(path.name for path in cache_dir().glob("*") if path.suffix != ".lock")
