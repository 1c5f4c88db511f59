"""Whether bytes are what the catalogue says they are, and which of its files they are."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable

from .catalog import Digest, DigestScheme, Source, WeightsRecord

_PREFIX_LENGTH = 8  # hexadecimal digits: the 32 bits of a sha256-prefix


def matches(content: bytes, digest: Digest) -> bool:
    """Return whether ``content`` has this digest.

    Raises:
        ValueError: the digest's scheme is unknown, or its value too short to tell anything.
    """
    return _agrees(_compute(content, digest.scheme), digest)


def identify(content: bytes, records: Iterable[WeightsRecord]) -> tuple[WeightsRecord, Source] | None:
    """Return the record and the source whose digest ``content`` has, or None; strong digests count first.

    Raises:
        ValueError: as :func:`matches`.
    """
    compute = functools.cache(functools.partial(_compute, content))
    pairs = [(record, source) for record in records for source in record.sources]
    for record, source in sorted(pairs, key=lambda pair: pair[1].digest.weak):
        if _agrees(compute(source.digest.scheme), source.digest):
            return record, source
    return None


def _agrees(computed: str, digest: Digest) -> bool:
    value = digest.value.lower()
    if digest.scheme != "sha256-prefix":
        return computed == value
    if len(value) < _PREFIX_LENGTH:
        raise ValueError(f"a sha256-prefix has at least {_PREFIX_LENGTH} digits, got {digest.value!r}")
    return computed.startswith(value)


def _compute(content: bytes, scheme: DigestScheme) -> str:
    if scheme not in _HASHES:
        raise ValueError(f"unknown digest scheme {scheme!r}, known: {', '.join(_HASHES)}")
    return _HASHES[scheme](content)


# SHA-1 is what git and the release archives' publisher give us. It is weak against someone who makes two files
# with one digest, not against someone who forges a file for a digest that is already known.
def _sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _git_blob(content: bytes) -> str:
    hasher = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
    hasher.update(content)
    return hasher.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


_HASHES: dict[DigestScheme, Callable[[bytes], str]] = {
    "git-blob-sha1": _git_blob,
    "sha1": _sha1,
    "sha256": _sha256,
    "sha256-prefix": _sha256,
}
