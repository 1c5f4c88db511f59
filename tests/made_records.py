"""Records of checkpoints made on the spot, and the cache as the download tests look at it."""

from __future__ import annotations

import hashlib
import io
import random
import zipfile
from pathlib import Path

import torch

from hardnet.weights.catalog import Digest, DigestScheme, Source, WeightsRecord
from hardnet.weights.download import Policy, cache_dir

POLICY = Policy(connect_timeout=5, stall_timeout=5, attempts=2, backoff=0.01, retry_after_cap=0.05, lock_timeout=20)


def checkpoint(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.rand(5000, generator=torch.Generator().manual_seed(seed))}, buffer)
    return buffer.getvalue()


GOOD = checkpoint()
OTHER = checkpoint(1)
LEGACY = b"\x80\x02" + random.Random(0).randbytes(1000)  # noqa: S311  test data


def packed(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("hardnet.pth", content)
    return buffer.getvalue()


def digest_of(content: bytes, scheme: DigestScheme = "sha256") -> Digest:
    sha256 = hashlib.sha256(content).hexdigest()
    values = {
        "sha256": sha256,
        "sha256-prefix": sha256[:8],
        "sha1": hashlib.sha1(content).hexdigest(),  # noqa: S324  one of the catalogue's digests
        "git-blob-sha1": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),  # noqa: S324  as above
    }
    return Digest(scheme, values[scheme])


def record_of(*urls: str, content: bytes = GOOD, scheme: DigestScheme = "sha256") -> WeightsRecord:
    sources = tuple(Source(url, digest_of(content, scheme), f"publisher {n}") for n, url in enumerate(urls))
    return WeightsRecord("hardnet68", "TEST_V1", sources, "made by the tests", 1.0, 0.1, "the tests")


def cached_names() -> list[str]:
    """What the cache holds, the lock aside."""
    folder = cache_dir()
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def place(record: WeightsRecord, content: bytes, source: int = 0) -> Path:
    """Put a file where the record's cached file belongs."""
    path = cache_dir() / record.cache_filename(record.sources[source])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
