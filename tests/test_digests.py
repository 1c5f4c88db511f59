"""Digests, checked against values that other programs computed."""

from __future__ import annotations

import pytest

from hardnet.weights.catalog import CATALOG, Digest, Source, WeightsRecord
from hardnet.weights.digests import identify, matches

# Of the six bytes b"hello\n": by `git hash-object`, `sha1sum` and `sha256sum`.
HELLO = b"hello\n"
GIT = "ce013625030ba8dba906f756967f9e9ca394464a"
SHA1 = "f572d396fae9206628714fb2ce00f72e94f2258f"
SHA256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
DIGESTS = [
    Digest("git-blob-sha1", GIT),
    Digest("sha1", SHA1),
    Digest("sha256", SHA256),
    Digest("sha256-prefix", SHA256[:8]),
    Digest("sha256-prefix", SHA256[:20]),
]


@pytest.mark.parametrize("digest", DIGESTS, ids=str)
def test_the_right_bytes_match_and_no_others(digest: Digest) -> None:
    assert matches(HELLO, digest)
    assert matches(HELLO, Digest(digest.scheme, digest.value.upper()))
    for other in (b"", b"hello", b"hello\n\0", b"Hello\n"):
        assert not matches(other, digest)


@pytest.mark.parametrize("digest", DIGESTS, ids=str)
def test_every_digit_counts(digest: Digest) -> None:
    for position, digit in enumerate(digest.value):
        wrong = digest.value[:position] + f"{int(digit, 16) ^ 1:x}" + digest.value[position + 1 :]
        assert not matches(HELLO, Digest(digest.scheme, wrong))


def test_only_a_prefix_may_be_shorter() -> None:
    for digest in DIGESTS[:3]:
        assert not matches(HELLO, Digest(digest.scheme, digest.value[:-1]))
        assert not matches(HELLO, Digest(digest.scheme, ""))
    for value in ("", SHA256[:7]):
        with pytest.raises(ValueError, match="at least 8 digits"):
            matches(HELLO, Digest("sha256-prefix", value))


def test_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown digest scheme 'md5', known: git-blob-sha1, sha1, sha256"):
        matches(HELLO, Digest("md5", "0" * 32))  # type: ignore[arg-type]


def record(*digests: Digest) -> WeightsRecord:
    sources = tuple(Source(f"https://host.invalid/{n}.pth", digest, "test") for n, digest in enumerate(digests))
    return WeightsRecord("hardnet68", "TEST", sources, "test", 1.0, 1.0, "test")


def test_bytes_are_identified_by_any_source() -> None:
    none = Digest("sha1", "0" * 40)
    for digest in DIGESTS:
        other, wanted = record(none), record(none, digest)
        assert identify(HELLO, [other, wanted]) == (wanted, wanted.sources[1])
    assert identify(HELLO, [record(none)]) is None
    assert identify(HELLO, []) is None
    assert identify(HELLO, CATALOG.values()) is None


def test_a_strong_digest_identifies_before_a_weak_one() -> None:
    weak, strong = record(DIGESTS[3]), record(DIGESTS[1])
    assert identify(HELLO, [weak, strong]) == (strong, strong.sources[0])
