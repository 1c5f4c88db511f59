"""Downloads from a scripted server: every fault ends as the right file or as one WeightsError."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from http_server import (
    CERTIFICATE,
    Handler,
    ScriptedServer,
    Step,
    chunked,
    hang_up,
    ranged,
    raw,
    redirect,
    running,
    serve,
)

import hardnet
from hardnet.utils.errors import WeightsError
from hardnet.weights import download, transfer
from hardnet.weights.catalog import Digest, DigestScheme, Source, WeightsRecord
from hardnet.weights.download import Policy, VerifiedFile, cache_dir, fetch, find_cached
from hardnet.weights.transfer import redact

MAX_BYTES = 1_000_000
POLICY = Policy(timeout=10, attempts=2, backoff=0.01, retry_after_cap=0.05, max_bytes=MAX_BYTES)
IMPATIENT = dataclasses.replace(POLICY, timeout=0.2)
PATIENT = dataclasses.replace(POLICY, attempts=3)
SHORT = dataclasses.replace(POLICY, total_timeout=1)


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
HALF = len(GOOD) // 2
DIGESTS: dict[DigestScheme, str] = {
    "sha256": hashlib.sha256(GOOD).hexdigest(),
    "sha256-prefix": hashlib.sha256(GOOD).hexdigest()[:8],
    "sha1": hashlib.sha1(GOOD).hexdigest(),  # noqa: S324  a digest of the catalogue
    "git-blob-sha1": hashlib.sha1(b"blob %d\0" % len(GOOD) + GOOD).hexdigest(),  # noqa: S324
}


def record_of(*urls: str, scheme: DigestScheme = "sha256") -> WeightsRecord:
    sources = tuple(Source(url, Digest(scheme, DIGESTS[scheme]), f"publisher {n}") for n, url in enumerate(urls))
    return WeightsRecord("hardnet68", "TEST_V1", sources, "made by the tests", 1.0, 0.1, "the tests")


def cached_names() -> list[str]:
    """The files in the cache, without the lock."""
    return sorted(path.name for path in cache_dir().glob("*") if path.suffix != ".lock")


def place(record: WeightsRecord, content: bytes) -> Path:
    path = cache_dir() / record.cache_filename(record.sources[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture(autouse=True)
def _environment(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("scheme", DIGESTS)
def test_a_file_is_downloaded_once_and_checked_on_each_load(
    server: ScriptedServer, scheme: DigestScheme, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    record = record_of(server.on("/w.pth", serve(GOOD)), scheme=scheme)
    assert find_cached(record) is None
    first = fetch(record, policy=POLICY)
    assert first == VerifiedFile(cache_dir() / record.cache_filename(record.sources[0]), GOOD, record.sources[0])
    assert first.path.read_bytes() == GOOD
    assert fetch(record, policy=POLICY) == find_cached(record) == first
    assert server.hits("/w.pth") == 1
    assert server.seen[0].headers["user-agent"] == f"hardnet/{hardnet.__version__}"
    assert caplog.text.count("weak digest") == (3 if scheme == "sha256-prefix" else 0)
    for damaged in (GOOD[:-1], b"", OTHER, bytes([GOOD[0] ^ 1]) + GOOD[1:], GOOD + b"\0"):
        hits = server.hits("/w.pth")
        first.path.write_bytes(damaged)
        assert fetch(record, policy=POLICY).content == GOOD == first.path.read_bytes()
        assert server.hits("/w.pth") == hits + 1
    assert caplog.text.count(f"{first.path} is damaged") == 5
    assert cached_names() == [first.path.name]
    assert capfd.readouterr() == ("", "")


CUT = f"closed after {HALF} of {len(GOOD)} bytes"
WRONG = "not the file with the digest sha256:"
ZIPPED = packed(("w.pth", GOOD))


def endless(handler: Handler) -> None:
    handler.start(200, {})
    while True:
        handler.wfile.write(GOOD)


def busy(retry_after: str) -> Step:
    return serve(b"", status=429, headers={"Retry-After": retry_after})


FAULTS: dict[str, tuple[tuple[Step, ...], str, int]] = {
    # What the server does: (its responses, what the error says or "" if the download succeeds, number of requests)
    "HTML page": ((serve(b"\n<!DOCTYPE html><html>Parked</html>"),), "start with b'\\n<!DOCTYPE html>'", 1),
    "Git LFS pointer": ((serve(b"version https://git-lfs.github.com/spec/v1\n"),), "start with b'version https://'", 1),
    "empty": ((serve(b""),), "0 bytes that start with", 1),
    "404": ((serve(b"", status=404),), "HTTP 404", 1),
    "403": ((serve(b"", status=403),), "HTTP 403", 1),
    "206 unasked": ((serve(GOOD, status=206),), "HTTP 206", 1),
    "terminal commands": ((raw(b"HTTP/1.1 404 \x1b[2J\r\nContent-Length: 0\r\n\r\n"),), r"HTTP 404 \x1b[2J", 1),
    "429, then good": ((busy("1"), serve(GOOD)), "", 2),
    "429": ((busy("86400"),), "HTTP 429", 2),
    "503, then good": ((serve(b"", status=503), serve(GOOD)), "", 2),
    "500": ((serve(b"", status=500),), "HTTP 500", 2),
    "slow": ((raw(b"HTTP/1.1 200 OK\r\n\r\n" + GOOD, interval=0.01),), "not complete after 1 seconds", 1),
    "not HTTP": ((raw(b"SSH-2.0-x\r\n"),), "failed", 2),
    "closes at once": ((hang_up,), "connection failed", 2),
    "closes, then good": ((hang_up, serve(GOOD)), "", 2),
    "closes after half": ((serve(GOOD, sent=HALF),), CUT, 2),
    "stalls": ((serve(GOOD, sent=0, pause=0.5),), "no data for", 2),
    "stalls, then resumes": ((serve(GOOD, sent=HALF, pause=0.5), ranged(GOOD)), "", 2),
    "endless": ((endless,), "larger than", 1),
    "declares a terabyte": ((serve(GOOD, length=10**12),), "larger than", 1),
    "length too large": ((serve(GOOD, length=len(GOOD) + 5),), "closed after", 2),
    "length too small": ((serve(GOOD, length=len(GOOD) - 5),), WRONG, 1),
    "length not a number": ((serve(GOOD, length="many"),), "", 1),
    "chunked": ((chunked(GOOD),), "", 1),
    "chunks end early": ((chunked(GOOD, ended=False),), "connection failed", 2),
    "gzip": ((serve(b"\x1f\x8b" + GOOD, headers={"Content-Encoding": "gzip"}),), WRONG, 1),
    "another file": ((serve(OTHER),), WRONG, 1),
    "one bit flipped": ((serve(GOOD[:HALF] + bytes([GOOD[HALF] ^ 1]) + GOOD[HALF + 1 :]),), WRONG, 1),
    "redirect": ((redirect("/good%20file.pth", 308),), "", 1),
    "redirect loop": ((redirect("?again"),), "more than 10 redirects", 1),
    "redirect to nowhere": ((redirect(None),), "a redirect that does not lead", 1),
    "redirect to file:": ((redirect("file:///etc/passwd"),), "a redirect that does not lead", 1),
    "redirect to ftp:": ((redirect("ftp://127.0.0.1/x"),), "a redirect that does not lead", 1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault(server: ScriptedServer, name: str, caplog: pytest.LogCaptureFixture) -> None:
    steps, says, requests = FAULTS[name]
    policy = IMPATIENT if "stalls" in name else SHORT if name == "slow" else POLICY
    good = server.on("/good%20file.pth", serve(GOOD))
    if "loop" in name:
        server.on("/w.pth?again", *steps)
    url = server.on("/w.pth", *steps)
    if not says:
        assert fetch(record_of(url), policy=policy).content == GOOD
    else:
        with pytest.raises(WeightsError) as caught:
            fetch(record_of(url), policy=policy)
        assert [line for line in str(caught.value).splitlines() if line.startswith(f"  - {url}: ") and says in line]
        assert "w.pth" in str(caught.value)
        assert "HARDNET_MIRROR" in str(caught.value)
        assert str(cache_dir()) in str(caught.value)
        assert cached_names() == []
        assert server.hits("/w.pth") == requests
        caplog.clear()
        record = record_of(url, good)
        found = fetch(record, policy=policy)
        assert (found.content, found.source) == (GOOD, record.sources[1])
        [line] = [line for line in caplog.messages if "trying the next source" in line]
        assert says in line
        requests *= 2
    assert server.hits("/w.pth") == requests
    assert len(cached_names()) == 1


ARCHIVES = {
    "": packed(("w.pth", GOOD)),
    "2 members": packed(("a.pth", GOOD), ("b.pth", GOOD)),
    "1 members ('w.txt')": packed(("w.txt", GOOD)),
    "File is not a zip file": ZIPPED[:-30],
    WRONG: packed(("w.pth", OTHER)),
    f"larger than {MAX_BYTES} bytes": packed(("w.pth", bytes(3 * MAX_BYTES))),
    "not a readable archive of one .pth file": GOOD,
}


@pytest.mark.parametrize("says", ARCHIVES)
def test_archive(server: ScriptedServer, says: str) -> None:
    record = record_of(server.on("/w.pth.zip", serve(ARCHIVES[says])))
    if not says:
        found = fetch(record, policy=POLICY)
        assert found.content == GOOD == found.path.read_bytes()
        assert cached_names() == [found.path.name]
    else:
        with pytest.raises(WeightsError) as caught:
            fetch(record, policy=POLICY)
        assert says in str(caught.value)
        assert cached_names() == []


DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
VALIDATORS = ({"ETag": '"one"'}, {"ETag": 'W/"weak"', "Last-Modified": DATE}, {"Last-Modified": DATE}, {})


@pytest.mark.parametrize("validator", VALIDATORS, ids=lambda validator: "+".join(validator) or "none")
def test_an_interrupted_transfer_is_resumed(server: ScriptedServer, validator: dict[str, str]) -> None:
    steps = (ranged(GOOD, validator=validator, sent=HALF), ranged(GOOD, validator=validator))
    assert fetch(record_of(server.on("/w.pth", *steps)), policy=POLICY).content == GOOD
    first, second = (seen.headers for seen in server.seen)
    assert "range" not in first
    assert second["range"] == f"bytes={HALF}-"
    assert second.get("if-range") == (list(validator.values())[-1] if validator else None)


@pytest.mark.parametrize(
    "second",
    [
        serve(GOOD),
        ranged(GOOD, shift=1),
        serve(GOOD[HALF:], status=206),
        serve(b"", status=416, headers={"Content-Range": f"bytes */{len(GOOD)}"}),
        ranged(OTHER),
        ranged(OTHER[:-100]),
        ranged(OTHER, validator={"ETag": '"two"'}),
    ],
    ids=["no ranges", "other range", "no Content-Range", "416", "other file", "other size", "changed"],
)
def test_a_wrong_continuation_leads_to_a_new_start(server: ScriptedServer, second: Step) -> None:
    record = record_of(server.on("/w.pth", ranged(GOOD, sent=HALF), second, serve(GOOD)), server.on("/2", serve(GOOD)))
    found = fetch(record, policy=PATIENT)
    assert found.content == GOOD
    changed = server.hits("/2") == 1  # the server says that the file is another one: complete, with a wrong digest
    assert found.source is record.sources[1 if changed else 0]
    assert len(server.requests("/w.pth")) <= 3


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(transfer, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    return waits


def test_attempts_and_waits(server: ScriptedServer, sleeps: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"HTTP 503 .*tried 5 times"):
        fetch(record_of(server.on("/a.pth", serve(b"", status=503))), policy=Policy(attempts=5, backoff=2))
    assert sleeps == [2, 4, 8, 16]
    for asked, wait in (("7", 7), ("3600", 60), ("soon", 1)):
        url = server.on("/b.pth", busy(asked), serve(GOOD))
        fetch(record_of(url), policy=Policy(backoff=1)).path.unlink()
        assert sleeps[-1] == wait
    monkeypatch.setattr(transfer, "_PROGRESS", 5000)  # attempts that bring this much do not count
    steps = [ranged(GOOD, sent=5000)] * (len(GOOD) // 5000) + [ranged(GOOD)]
    assert fetch(record_of(server.on("/c.pth", *steps)), policy=POLICY).content == GOOD


def test_connection_errors(sleeps: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(WeightsError, match=r"connection failed: .*refused.*tried 2 times"):
            fetch(record_of(f"http://127.0.0.1:{unused.getsockname()[1]}/w.pth"), policy=POLICY)

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(WeightsError, match=r"Name or service not known\n"):  # not tried again
        fetch(record_of("http://x.invalid/w.pth"), policy=POLICY)


@pytest.fixture
def tls_server() -> Iterator[ScriptedServer]:
    with running(tls=True) as script:
        yield script


def test_certificates(
    server: ScriptedServer, tls_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = record_of(tls_server.on("/w.pth", serve(GOOD)))
    with pytest.raises(WeightsError, match="certificate is not trusted"):
        fetch(record, policy=POLICY)
    for variable in ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(variable, str(tmp_path / "none.pem"))
        with pytest.raises(WeightsError, match=rf"{variable}: the certificate bundle .*none\.pem cannot be loaded"):
            fetch(record, policy=POLICY)
        monkeypatch.setenv(variable, str(CERTIFICATE))
        fetch(record, policy=POLICY).path.unlink()
    other_name = record_of(record.sources[0].url.replace("127.0.0.1", "localhost"))
    with pytest.raises(WeightsError, match="certificate is not trusted"):
        fetch(other_name, policy=POLICY)
    server.on("/plain.pth", serve(GOOD))
    down = record_of(tls_server.on("/down.pth", redirect(server.url + "/plain.pth")))
    with pytest.raises(WeightsError, match="a redirect from https to http"):
        fetch(down, policy=POLICY)
    up = record_of(server.on("/up.pth", redirect(record.sources[0].url)))
    assert fetch(up, policy=POLICY).content == GOOD
    assert server.hits("/plain.pth") == 0


def test_a_proxy_of_the_environment_is_used(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(WeightsError, match="unknown url type: socks5"):
        fetch(record_of("http://weights.invalid/w.pth"), policy=POLICY)
    monkeypatch.setenv("http_proxy", server.url)
    server.on("http://weights.invalid/w.pth", serve(GOOD))
    assert fetch(record_of("http://weights.invalid/w.pth"), policy=POLICY).content == GOOD


def test_credentials_are_sent_to_their_host_only(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as other:
        server.on("/mirror/a%20b.pth", redirect("/next"))
        server.on("/next", redirect(other.on("/c", serve(GOOD))))
        monkeypatch.setenv("HARDNET_MIRROR", server.url.replace("http://", "http://user:p%40ss@") + "/mirror/")
        assert fetch(record_of("https://x.invalid/a b.pth"), policy=POLICY).content == GOOD
        assert [seen.headers.get("authorization") for seen in server.seen] == ["Basic dXNlcjpwQHNz"] * 2
        assert "authorization" not in other.seen[0].headers


SECRETS = [
    "http://user:a/SECRET@host/",
    "http://user:1/SECRET@host/",
    "http://user:SECRET#x@host/",
    "http://user:1#SECRET@host/",
    "http://user:a?SECRET@host/",
    "http://user:1?SECRET@host/",
    "http://127.0.0.1:9/x?token=SECRET",
    "http://127.0.0.1:9/x#SECRET",
    "user:SECRET@host/x",
    "//user:SECRET@host/x",
    "host/x?token=SECRET",
    "http://user:SECRET@host:port/",
    "http://user:SECRET@[x/",
    "http://user:SECRET@ho\u2100st/",  # urlsplit quotes all of it in its error
    "http://user:SECRET@/x",
    "ftp://user:SECRET@host/x",
    "s3://SECRET",
]


@pytest.mark.parametrize("address", SECRETS)
def test_no_message_shows_a_secret(
    address: str, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert "SECRET" not in redact(address)
    with pytest.raises(WeightsError) as caught:
        fetch(record_of(address + ("" if "token" in address else "w.pth")), policy=POLICY)
    assert "SECRET" not in str(caught.value) + caplog.text
    monkeypatch.setenv("HARDNET_MIRROR", address)
    with pytest.raises(WeightsError, match="HARDNET_MIRROR is not valid; expected an existing folder") as caught:
        fetch(record_of(server.on("/a.pth", serve(GOOD))), policy=POLICY)
    assert caught.value.__cause__ is None
    assert "SECRET" not in str(caught.value) + caplog.text
    assert server.seen == []


def test_a_valid_address_is_shown_without_credentials(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert redact("https://user:SECRET@host:1/x.pth?token=SECRET#y") == "https://host:1/x.pth"
    monkeypatch.setenv("HARDNET_MIRROR", server.url.replace("http://", "http://user:SECRET@"))
    server.on("/w.pth?token=SECRET", serve(OTHER))
    with pytest.raises(WeightsError) as caught:
        fetch(record_of(server.url + "/w.pth?token=SECRET"), policy=POLICY)
    assert f"{server.url}/w.pth: HTTP 404" in str(caught.value)
    assert f"{server.url}/w.pth: not the file" in str(caught.value)
    assert "SECRET" not in str(caught.value)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    (tmp_path / "mirror folder").mkdir()
    return tmp_path / "mirror folder"


def test_a_mirror_folder_comes_first(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, mirror: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = record_of(server.on("/a.pth", serve(GOOD)), server.on("/b.pth.zip", serve(ZIPPED)))
    for name, content in (("a.pth", GOOD), ("b.pth.zip", ZIPPED)):
        for address in (str(mirror), mirror.as_uri(), f" {mirror}/ "):
            (mirror / name).write_bytes(content)
            monkeypatch.setenv("HARDNET_MIRROR", address)
            found = fetch(record, policy=POLICY)
            assert found.content == GOOD == found.path.read_bytes()
            found.path.unlink()
        (mirror / name).unlink()
    assert server.seen == []
    (mirror / "a.pth").write_bytes(OTHER)  # checked like a source
    (mirror / "b.pth.zip").mkdir()
    assert fetch(record, policy=POLICY).content == GOOD
    assert f"{mirror / 'a.pth'}: not the file" in caplog.text
    assert f"{mirror / 'b.pth.zip'}: the file cannot be read" in caplog.text


def test_offline_mode(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, mirror: Path) -> None:
    record = record_of(server.on("/a.pth", serve(GOOD)))
    monkeypatch.setenv("HARDNET_OFFLINE", " YES ")
    monkeypatch.setenv("HARDNET_MIRROR", server.url + "/mirror")
    with pytest.raises(WeightsError, match=r"Offline mode is on \(HARDNET_OFFLINE\)") as caught:
        fetch(record, policy=POLICY)
    assert f"{server.url}/a.pth: not tried" in str(caught.value)
    (mirror / "a.pth").write_bytes(GOOD)
    monkeypatch.setenv("HARDNET_MIRROR", str(mirror))
    assert fetch(record, policy=POLICY).content == GOOD
    monkeypatch.delenv("HARDNET_MIRROR")
    fetch(record, policy=POLICY).path.unlink()  # from the cache
    assert server.seen == []
    monkeypatch.setenv("HARDNET_OFFLINE", "maybe")
    with pytest.raises(WeightsError, match="HARDNET_OFFLINE is 'maybe', expected one of 1, true"):
        fetch(record, policy=POLICY)
    monkeypatch.setenv("HARDNET_OFFLINE", "No")
    assert fetch(record, policy=POLICY).content == GOOD


def test_a_damaged_file_of_the_package_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "__file__", str(tmp_path / "weights" / "download.py"))
    for content, says in ((None, "No such file"), (OTHER, WRONG)):
        if content is not None:
            (tmp_path / "tiny.pth").write_bytes(content)
        with pytest.raises(WeightsError, match=f"tiny.pth: .*{says}"):
            fetch(record_of("package:tiny.pth"), policy=POLICY)
    assert (tmp_path / "tiny.pth").read_bytes() == OTHER


def test_a_cache_that_cannot_be_written(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mirror: Path
) -> None:
    (tmp_path / "torch_home").write_bytes(b"a file")
    record = record_of(server.on("/a.pth", serve(GOOD)), server.on("/b.pth", serve(GOOD)))
    with pytest.raises(WeightsError, match=r"the cache folder .*torch_home.* cannot be written.*TORCH_HOME"):
        fetch(record, policy=POLICY)
    assert server.seen == []
    (mirror / "a.pth").write_bytes(GOOD)
    monkeypatch.setenv("HARDNET_MIRROR", str(mirror))
    assert fetch(record, policy=POLICY) == VerifiedFile(mirror / "a.pth", GOOD, record.sources[0])


WORKERS = """
import os, sys
from hardnet.weights.catalog import Digest, Source, WeightsRecord
from hardnet.weights.download import cache_dir, fetch

url, value = sys.argv[1:]
record = WeightsRecord("hardnet68", "TEST_V1", (Source(url, Digest("sha256", value), "x"),), "x", 1.0, 1.0, "x")
cache_dir()

def start():
    pid = os.fork()  # after the imports, so that all start at once
    if pid == 0:
        os._exit(fetch(record).path.read_bytes() != fetch(record).content)
    return pid

print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in [start() for _ in range(8)]])
"""


def slowly(handler: Handler) -> None:
    time.sleep(1)
    serve(GOOD)(handler)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks, a POSIX feature")
def test_eight_processes_download_once(server: ScriptedServer) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(hardnet.__file__).parents[1])}
    command = [sys.executable, "-c", WORKERS, server.on("/w.pth", slowly), DIGESTS["sha256"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([0] * 8)
    assert server.hits("/w.pth") == 1
    assert len(cached_names()) == 1
