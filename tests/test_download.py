"""Downloads from a scripted server: every fault ends as the right file or as one WeightsError."""

import time
from types import SimpleNamespace

import pytest
from http_server import CERTIFICATE, Handler, ScriptedServer, Step, ranged, raw, redirect, running, serve
from published import DIGESTS, GOOD, OTHER, ZIPPED, cached_names, packed, record_of

import hardnet
from hardnet.utils.errors import WeightsError
from hardnet.weights import transfer
from hardnet.weights.catalog import DigestScheme
from hardnet.weights.download import VerifiedFile, cache_dir, fetch, find_cached

pytestmark = pytest.mark.usefixtures("clean_environment")
HALF = len(GOOD) // 2


@pytest.mark.parametrize("scheme", DIGESTS)
def test_a_file_is_downloaded_once_and_checked_on_each_load(
    server: ScriptedServer, scheme: DigestScheme, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    record = record_of(server.on("/w.pth", serve(GOOD)), scheme=scheme)
    assert find_cached(record) is None
    first = fetch(record)
    assert first == VerifiedFile(cache_dir() / record.cache_filename(record.sources[0]), GOOD, record.sources[0])
    assert first.path.read_bytes() == GOOD
    assert fetch(record) == find_cached(record) == first
    assert server.hits("/w.pth") == 1
    assert server.requests[0].headers["user-agent"] == f"hardnet/{hardnet.__version__}"
    assert caplog.text.count("weak digest") == (3 if scheme == "sha256-prefix" else 0)
    for damaged in (b"", OTHER):
        hits = server.hits("/w.pth")
        first.path.write_bytes(damaged)
        assert fetch(record).content == GOOD == first.path.read_bytes()
        assert server.hits("/w.pth") == hits + 1
    assert caplog.text.count(f"{first.path} is damaged") == 2
    assert cached_names() == [first.path.name]
    assert capfd.readouterr() == ("", "")


def endless(handler: Handler) -> None:
    handler.start(200, {})
    while True:
        handler.wfile.write(GOOD)


def redirected_without_end(handler: Handler) -> None:
    handler.start(302, {"Location": "/good%20file.pth"})
    while True:
        handler.wfile.write(GOOD)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)
FAULTS: dict[str, tuple[tuple[Step, ...], str, int]] = {
    # What the server does: (its responses, what the error says or "" if the download succeeds, number of requests)
    "another file": ((serve(OTHER),), "not the file with the digest sha256:", 1),
    "terminal commands": ((raw(b"HTTP/1.1 404 \x1b[2J\r\nContent-Length: 0\r\n\r\n"),), r"404: \x1b[2J", 1),
    "503, then good": ((serve(b"", status=503), serve(GOOD)), "", 2),
    "slow": ((raw(b"HTTP/1.1 200 OK\r\n\r\n" + GOOD, interval=0.01),), "not complete after 1 seconds", 1),
    "closes at once": ((raw(b""),), "connection failed", 2),
    "closes after half": ((serve(GOOD, sent=HALF),), f"closed after {HALF} of {len(GOOD)} bytes", 2),
    "stalls": ((serve(GOOD, sent=0, pause=0.5),), "no data for", 2),
    "endless": ((endless,), "larger than", 1),
    "chunked": ((raw(CHUNKED),), "", 1),
    "redirect": ((redirect("/good%20file.pth"),), "", 1),
    "redirect loop": ((redirect("/w.pth"),), "infinite loop", 5),
    "redirect to file:": ((redirect("file:///etc/passwd"),), "not allowed", 1),
    "endless redirect": ((redirected_without_end,), "", 1),
}


LIMITS = {"stalls": ("TIMEOUT", 0.2), "slow": ("TOTAL_TIMEOUT", 1.0)}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_server_ends_as_the_right_file_or_one_error(
    server: ScriptedServer, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, says, requests = FAULTS[name]
    if name in LIMITS:
        monkeypatch.setattr(transfer, *LIMITS[name])
    good = server.on("/good%20file.pth", serve(GOOD))
    url = server.on("/w.pth", *steps)
    if not says:
        assert fetch(record_of(url)).content == GOOD
        assert server.hits("/w.pth") == requests
        return
    with pytest.raises(WeightsError) as caught:
        fetch(record_of(url))
    assert caught.value.cause == ("damaged" if name == "another file" else "host")
    assert [line for line in str(caught.value).splitlines() if line.startswith(f"  - {url}: ") and says in line]
    assert "HARDNET_MIRROR" in str(caught.value)
    assert str(cache_dir()) in str(caught.value)
    assert cached_names() == []
    assert server.hits("/w.pth") == requests
    record = record_of(url, good)
    file = fetch(record)
    assert (file.content, file.source) == (GOOD, record.sources[1])
    assert f"cannot be loaded from {url}" in caplog.text
    assert len(cached_names()) == 1


ARCHIVES = {
    "": packed(("w.pth", GOOD)),
    "2 members": packed(("a.pth", GOOD), ("b.pth", GOOD)),
    "File is not a zip file": ZIPPED[:-30],
    "larger than 1000000 bytes": packed(("w.pth", bytes(3_000_000))),
}


@pytest.mark.parametrize("says", ARCHIVES)
def test_an_archive_of_one_file_is_unpacked(server: ScriptedServer, says: str) -> None:
    record = record_of(server.on("/w.pth.zip", serve(ARCHIVES[says])))
    if not says:
        file = fetch(record)
        assert file.content == GOOD == file.path.read_bytes()
    else:
        with pytest.raises(WeightsError, match=says):
            fetch(record)
        assert cached_names() == []


def test_an_interrupted_transfer_is_resumed(server: ScriptedServer) -> None:
    reports: list[tuple[int, int | None]] = []
    record = record_of(server.on("/w.pth", ranged(GOOD, sent=HALF), ranged(GOOD)))
    assert fetch(record, progress=lambda *report: reports.append(report)).content == GOOD
    assert (HALF, len(GOOD)) in reports
    assert reports[-1] == (len(GOOD), len(GOOD))
    assert [request.headers.get("range") for request in server.requests] == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize("second", [serve(GOOD), ranged(OTHER)], ids=["no ranges", "other file"])
def test_a_wrong_continuation_leads_to_a_new_start(
    server: ScriptedServer, second: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 3)
    record = record_of(server.on("/w.pth", ranged(GOOD, sent=HALF), second, serve(GOOD)))
    assert fetch(record).content == GOOD
    assert server.hits("/w.pth") <= 3


def test_waits_double_and_an_unknown_host_is_not_tried_again(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(transfer, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    monkeypatch.setattr(transfer, "ATTEMPTS", 5)
    with pytest.raises(WeightsError, match="tried 5 times"):
        fetch(record_of(server.on("/a.pth", serve(b"", status=503))))
    with pytest.raises(WeightsError, match="connection failed") as caught:
        fetch(record_of("http://x.invalid/a.pth"))
    assert caught.value.cause == "network"
    assert waits == pytest.approx([0.01, 0.02, 0.04, 0.08])


def test_only_trusted_certificates_of_the_same_name_pass(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tls=True) as secure:
        record = record_of(secure.on("/w.pth", serve(GOOD)))
        with pytest.raises(WeightsError, match="certificate is not trusted"):
            fetch(record)
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        fetch(record).path.unlink()
        with pytest.raises(WeightsError, match="certificate is not trusted"):
            fetch(record_of(record.sources[0].url.replace("127.0.0.1", "localhost")))
        server.on("/plain.pth", serve(GOOD))
        with pytest.raises(WeightsError, match="a redirect from https to http"):
            fetch(record_of(secure.on("/down.pth", redirect(server.url + "/plain.pth"))))
        assert fetch(record_of(server.on("/up.pth", redirect(record.sources[0].url)))).content == GOOD
        assert server.hits("/plain.pth") == 0
