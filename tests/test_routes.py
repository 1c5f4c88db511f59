"""What HARDNET_MIRROR and HARDNET_OFFLINE do to a download."""

from __future__ import annotations

from pathlib import Path

import pytest
from http_server import ScriptedServer, serve
from made_records import (
    GOOD,
    OTHER,
    POLICY,
    packed,
    record_of,
)

from hardnet.utils.errors import WeightsError
from hardnet.weights.download import Policy, cache_dir, fetch, find_cached

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror folder"
    folder.mkdir()
    return folder


def test_a_folder_comes_before_the_sources(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, mirror: Path
) -> None:
    record = record_of(server.on("/a.pth", serve(GOOD)), server.on("/b.pth.zip", serve(packed(GOOD))))
    for name, content in (("a.pth", GOOD), ("b.pth.zip", packed(GOOD))):
        for address in (str(mirror), mirror.as_uri(), f" {mirror}/ "):
            (mirror / name).write_bytes(content)
            monkeypatch.setenv("HARDNET_MIRROR", address)
            found = fetch(record, policy=POLICY)
            assert found.content == GOOD
            assert found.path.parent == cache_dir()
            again = find_cached(record)  # the folder may go away now
            assert again is not None
            assert (again.path, again.content) == (found.path, GOOD)
            found.path.unlink()
        (mirror / name).unlink()
    assert server.seen == []


def test_an_address_comes_before_the_sources(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    record = record_of(server.on("/a b.pth", serve(GOOD)))
    monkeypatch.setenv("HARDNET_MIRROR", server.url.replace("http://", "http://user:secret@") + "/mirror/")
    server.on("/mirror/a%20b.pth", serve(GOOD))
    assert fetch(record, policy=POLICY).content == GOOD
    assert [seen.path for seen in server.seen] == ["/mirror/a%20b.pth"]
    assert server.seen[0].headers["authorization"].startswith("Basic ")


def test_a_mirror_is_trusted_no_more_than_a_source(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, mirror: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = record_of(server.on("/a.pth", serve(GOOD)))
    for content, says in (
        (OTHER, "another file or damaged"),
        (b"", "empty"),
        (b"<html></html>", "an HTML page"),
        (GOOD[:-1], "another file or damaged"),
    ):
        (mirror / "a.pth").write_bytes(content)
        monkeypatch.setenv("HARDNET_MIRROR", str(mirror))
        caplog.clear()
        found = fetch(record, policy=POLICY)
        assert found.content == GOOD
        assert f"{mirror / 'a.pth'}: " in caplog.text
        assert says in caplog.text
        found.path.unlink()
    monkeypatch.setenv("HARDNET_MIRROR", server.url.replace("http://", "http://user:secret@") + "/mirror")
    server.on("/mirror/a.pth", serve(OTHER))
    fetch(record, policy=POLICY).path.unlink()
    server.on("/a.pth", serve(b"", status=404))
    with pytest.raises(WeightsError) as caught:
        fetch(record, policy=POLICY)
    assert f"{server.url}/mirror/a.pth: these" in str(caught.value)
    assert "secret" not in caplog.text + str(caught.value)


def test_what_a_folder_lacks_or_holds_in_its_place_is_said(monkeypatch: pytest.MonkeyPatch, mirror: Path) -> None:
    record = record_of(*(f"http://host.invalid/{name}.pth" for name in "abc"))
    (mirror / "b.pth").mkdir()
    (mirror / "c.pth").write_bytes(GOOD)
    monkeypatch.setenv("HARDNET_MIRROR", str(mirror))
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    with pytest.raises(WeightsError) as caught:
        fetch(record, policy=Policy(max_bytes=len(GOOD) - 1))
    assert f"{mirror / 'c.pth'}: the file is larger than {len(GOOD) - 1} bytes" in str(caught.value)
    assert f"{mirror / 'a.pth'}: no such file" in str(caught.value)
    assert f"{mirror / 'b.pth'}: the file cannot be read" in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "ftp://u:secret@host/x",
        "mirror.invalid/weights",
        "http://",
        "https:///x",
        "http://h/x?q=1",
        "http://[x",
        "s3://b",
        "~nobody-of-this-name/weights",
    ],
)
def test_a_mirror_that_makes_no_sense_is_an_error(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HARDNET_MIRROR", value)
    record = record_of(server.on("/a.pth", serve(GOOD)))
    with pytest.raises(
        WeightsError, match=r"HARDNET_MIRROR .*expected an existing folder, a file:// address, or"
    ) as caught:
        fetch(record, policy=POLICY)
    assert "secret" not in str(caught.value)
    assert server.seen == []
    monkeypatch.setenv("HARDNET_MIRROR", " ")
    assert fetch(record, policy=POLICY).content == GOOD


def test_a_folder_serves_where_the_cache_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, mirror: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "torch_home").write_bytes(b"in the way")
    (mirror / "a.pth").write_bytes(GOOD)
    monkeypatch.setenv("HARDNET_MIRROR", str(mirror))
    found = fetch(record_of("http://host.invalid/a.pth"), policy=POLICY)
    assert (found.path, found.content) == (mirror / "a.pth", GOOD)
    assert "is used where it lies" in caplog.text
    (mirror / "b.pth.zip").write_bytes(packed(GOOD))
    with pytest.raises(WeightsError, match="cannot be written"):
        fetch(record_of("http://host.invalid/b.pth.zip"), policy=POLICY)


@pytest.mark.parametrize("value", ["1", "true", "YES", " on "])
def test_offline_the_network_is_not_asked(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, mirror: Path, value: str
) -> None:
    record = record_of(server.on("/a.pth", serve(GOOD)))
    monkeypatch.setenv("HARDNET_OFFLINE", value)
    with pytest.raises(WeightsError, match=r"Offline mode is on \(HARDNET_OFFLINE\)") as caught:
        fetch(record, policy=POLICY)
    assert f"{server.url}/a.pth: not asked" in str(caught.value)
    monkeypatch.setenv("HARDNET_MIRROR", server.url)
    with pytest.raises(WeightsError, match="Offline mode is on"):
        fetch(record, policy=POLICY)
    (mirror / "a.pth").write_bytes(GOOD)
    monkeypatch.setenv("HARDNET_MIRROR", str(mirror))
    assert fetch(record, policy=POLICY).content == GOOD
    monkeypatch.delenv("HARDNET_MIRROR")
    assert fetch(record, policy=POLICY).content == GOOD  # from the cache
    assert server.seen == []


@pytest.mark.parametrize("value", ["0", "false", "No", "off", ""])
def test_offline_mode_may_be_off(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HARDNET_OFFLINE", value)
    assert fetch(record_of(server.on("/a.pth", serve(GOOD))), policy=POLICY).content == GOOD


def test_offline_mode_must_be_yes_or_no(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDNET_OFFLINE", "maybe")
    with pytest.raises(WeightsError, match="HARDNET_OFFLINE is 'maybe', expected one of 1, true"):
        fetch(record_of(server.on("/a.pth", serve(GOOD))), policy=POLICY)
    assert server.seen == []
