"""From a record to verified bytes: package, cache and sources, against a real server."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import pytest
import torch
from http_server import ScriptedServer, Step, ranged, serve
from made_records import (
    GOOD,
    LEGACY,
    OTHER,
    POLICY,
    cached_names,
    digest_of,
    packed,
    place,
    record_of,
)

from hardnet.utils.errors import WeightsError
from hardnet.weights import download
from hardnet.weights.catalog import DigestScheme, Source, WeightsRecord
from hardnet.weights.download import Policy, cache_dir, fetch, find_cached

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.mark.parametrize("scheme", ["git-blob-sha1", "sha1", "sha256", "sha256-prefix"])
def test_a_file_is_brought_once(server: ScriptedServer, scheme: DigestScheme) -> None:
    record = record_of(server.on("/w.pth", serve(GOOD)), scheme=scheme)
    assert find_cached(record) is None
    first = fetch(record, policy=POLICY)
    assert first.content == GOOD == first.path.read_bytes()
    assert first.source is record.sources[0]
    assert first.path == cache_dir() / record.cache_filename(first.source)
    assert cached_names() == [first.path.name]
    assert fetch(record, policy=POLICY) == find_cached(record) == first
    assert server.hits("/w.pth") == 1
    assert torch.load(io.BytesIO(first.content), weights_only=True)["weight"].shape == (5000,)


def test_an_archive_is_unpacked_and_its_content_kept(server: ScriptedServer) -> None:
    record = record_of(server.on("/w.pth.zip", serve(packed(GOOD))))
    found = fetch(record, policy=POLICY)
    assert found.content == GOOD == found.path.read_bytes()
    assert cached_names() == [found.path.name]
    assert found.path.suffix == ".pth"


def test_a_legacy_file_is_a_checkpoint_too(server: ScriptedServer) -> None:
    assert fetch(record_of(server.on("/w.pth", serve(LEGACY)), content=LEGACY), policy=POLICY).content == LEGACY


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (serve(OTHER), "another file or damaged"),
        (serve(b"<html>parked</html>", kind="text/html"), "an HTML page"),
        (serve(b"", status=404), "HTTP 404"),
        (serve(b"", status=503), "HTTP 503"),
        (serve(GOOD, sent=1000), "closed after 1000 of"),
        (serve(GOOD, length=len(GOOD) - 1), "another file or damaged"),
        (serve(GOOD + b"\0"), "another file or damaged"),
    ],
    ids=["wrong file of the right size", "page", "404", "503", "cut", "short", "long"],
)
def test_the_next_source_is_tried_and_a_log_line_says_so(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture, step: Step, says: str
) -> None:
    assert len(OTHER) == len(GOOD)
    record = record_of(server.on("/a.pth", step), server.on("/b.pth", serve(GOOD)))
    found = fetch(record, policy=POLICY)
    assert found.content == GOOD
    assert found.source is record.sources[1]
    assert len(cached_names()) == 1
    warnings = [line for line in caplog.messages if "trying the next source" in line]
    assert len(warnings) == 1
    assert says in warnings[0]
    assert "/a.pth" in warnings[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (packed(OTHER), "another file or damaged"),
        (packed(GOOD)[:-30], "damaged"),
        (GOOD, "members"),
        (b"<html></html>", "an HTML page"),
    ],
)
def test_a_bad_archive_leads_to_the_next_source(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture, content: bytes, says: str
) -> None:
    record = record_of(server.on("/a.pth.zip", serve(content)), server.on("/b.pth", serve(GOOD)))
    assert fetch(record, policy=POLICY).source is record.sources[1]
    assert says in caplog.text


def test_when_all_fail_one_error_says_what_happened_and_what_to_do(server: ScriptedServer) -> None:
    record = record_of(
        server.on("/a.pth", serve(b"", status=404)),
        server.on("/b.pth.zip", serve(b"<html>", kind="text/html")),
        server.on("/c.pth", serve(OTHER)),
        "gopher://host.invalid/d.pth",
    )
    with pytest.raises(WeightsError) as caught:
        fetch(record, policy=POLICY)
    message = str(caught.value)
    assert "hardnet68 TEST_V1" in message
    assert f"{server.url}/a.pth: HTTP 404" in message
    assert f"{server.url}/b.pth.zip: an HTML page" in message
    assert f"{server.url}/c.pth: these {len(OTHER)} bytes are another file" in message
    assert "gopher://host.invalid/d.pth is no http or https address" in message
    assert "a.pth, b.pth.zip, c.pth, d.pth" in message
    assert "HARDNET_MIRROR" in message
    assert 'weights="/path/to/file"' in message
    assert str(cache_dir()) in message
    assert "Offline" not in message
    assert cached_names() == []


def damages() -> list[bytes]:
    positions = [0, 1, 2, 3, *range(5, len(GOOD), len(GOOD) // 300), len(GOOD) - 2, len(GOOD) - 1]
    flipped = [GOOD[:n] + bytes([GOOD[n] ^ (1 << n % 8)]) + GOOD[n + 1 :] for n in positions]
    cut = [GOOD[:n] for n in range(0, len(GOOD), len(GOOD) // 100)]
    return [*flipped, *cut, GOOD[:1], GOOD[:-1], GOOD + b"\0", OTHER]


def test_no_damaged_file_of_the_cache_is_ever_returned(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    record = record_of(server.on("/w.pth", serve(GOOD)))
    assert len(damages()) > 400
    for number, damaged in enumerate(damages(), start=1):
        caplog.clear()
        path = place(record, damaged)
        found = fetch(record, policy=POLICY)
        assert found.content == GOOD == path.read_bytes()
        assert server.hits("/w.pth") == number
        aside = [name for name in cached_names() if name != path.name and name in caplog.text]
        assert len(aside) == 1
        assert aside[0].startswith(f"{path.name}.bad-")
        assert (cache_dir() / aside[0]).read_bytes() == damaged
    place(record, OTHER)
    assert find_cached(record) is None
    assert server.hits("/w.pth") == number


def test_any_source_of_the_cache_will_do(server: ScriptedServer) -> None:
    record = record_of(server.url + "/a.pth", server.url + "/b.pth")
    record = WeightsRecord(
        record.model,
        record.tag,
        (Source(record.sources[0].url, digest_of(OTHER), "a"), record.sources[1]),
        "the tests",
        1.0,
        0.1,
        "the tests",
    )
    place(record, GOOD, source=1)
    assert fetch(record, policy=POLICY).source is record.sources[1]
    place(record, OTHER, source=0)
    assert fetch(record, policy=POLICY).source is record.sources[0]
    assert server.seen == []


def test_a_file_replaced_while_it_is_judged_is_looked_at_again(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has found the damage too, and has already brought a good file."""
    record = record_of(server.on("/w.pth", serve(GOOD)))
    path = place(record, OTHER)
    real, calls = download.cache.read_bounded, [0]

    def read(given: Path, limit: int) -> tuple[bytes, os.stat_result]:
        result = real(given, limit)
        calls[0] += 1
        if calls[0] == 1:
            (path.parent / "new").write_bytes(GOOD)
            (path.parent / "new").replace(path)
        return result

    monkeypatch.setattr(download.cache, "read_bounded", read)
    found = find_cached(record)
    assert found is not None
    assert found.content == GOOD
    assert cached_names() == [path.name]
    assert server.seen == []


def test_a_weak_digest_is_called_weak_each_time(server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    record = record_of(server.on("/w.pth", serve(GOOD)), scheme="sha256-prefix")
    for _ in range(2):
        caplog.clear()
        fetch(record, policy=POLICY)
        lines = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
        assert len(lines) == 1
        assert "weak" in lines[0]
    caplog.clear()
    fetch(record_of(server.on("/s.pth", serve(GOOD))), policy=POLICY)
    assert "weak" not in caplog.text


def test_a_wrong_file_pieced_together_is_brought_once_more_whole(server: ScriptedServer) -> None:
    half = len(GOOD) // 2
    mixed = ranged(OTHER[:half] + OTHER[half:], etag='"same"')
    record = record_of(server.on("/w.pth", ranged(GOOD, etag='"same"', sent=half), mixed, serve(GOOD)))
    assert fetch(record, policy=POLICY).content == GOOD
    assert [seen.headers.get("range") for seen in server.requests("/w.pth")] == [None, f"bytes={half}-", None]


def test_a_wrong_file_is_not_brought_for_ever(server: ScriptedServer) -> None:
    half = len(GOOD) // 2
    steps = (ranged(GOOD, etag='"same"', sent=half), ranged(OTHER, etag='"same"'))
    record = record_of(server.on("/w.pth", *steps, steps[0], steps[1]))
    with pytest.raises(WeightsError, match="another file or damaged"):
        fetch(record, policy=POLICY)
    assert [seen.headers.get("range") for seen in server.requests("/w.pth")] == [None, f"bytes={half}-", None, None]
    assert cached_names() == []


def test_the_size_is_bounded(server: ScriptedServer) -> None:
    record = record_of(server.on("/w.pth", serve(GOOD)), server.on("/w.pth.zip", serve(packed(GOOD))))
    with pytest.raises(WeightsError, match="larger than 1000 bytes"):
        fetch(record, policy=Policy(max_bytes=1000))
    assert cached_names() == []
    place(record, GOOD)
    assert find_cached(record) is not None


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    (tmp_path / "package" / "weights").mkdir(parents=True)
    monkeypatch.setattr(download, "__file__", str(tmp_path / "package" / "download" / "__init__.py"))
    return tmp_path / "package"


def test_the_librarys_own_file_needs_neither_cache_nor_network(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "weights" / "tiny.pth").write_bytes(GOOD)
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    record = record_of("package:weights/tiny.pth")
    found = fetch(record, policy=POLICY)
    assert (found.path, found.content) == (package / "weights" / "tiny.pth", GOOD)
    assert find_cached(record) == found
    assert cached_names() == []


def test_the_librarys_own_file_is_verified_too(
    server: ScriptedServer, package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = package / "weights" / "tiny.pth"
    record = record_of("package:weights/tiny.pth")
    for content, says in ((OTHER, "another file or damaged"), (None, "install the library again")):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        assert find_cached(record) is None
        assert says in caplog.text
        with pytest.raises(WeightsError, match=f"package:weights/tiny.pth: .*{says}"):
            fetch(record, policy=POLICY)
    path.write_bytes(OTHER)
    both = record_of("package:weights/tiny.pth", server.on("/a.pth", serve(GOOD)))
    assert fetch(both, policy=POLICY).source is both.sources[1]
    assert path.read_bytes() == OTHER  # the installation's files are not ours to move
