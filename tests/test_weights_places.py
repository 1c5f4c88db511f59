"""Where weights come from: proxies, credentials, mirrors, offline mode, the package, a cache that cannot be written."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from http_server import Handler, ScriptedServer, redirect, running, serve
from published import DIGESTS, GOOD, OTHER, WRONG, ZIPPED, cached_names, record_of

import hardnet
from hardnet.utils.errors import WeightsError
from hardnet.weights import download
from hardnet.weights.download import fetch
from hardnet.weights.transfer import redact

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_a_proxy_of_the_environment_is_used(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(WeightsError, match="socks5"):
        fetch(record_of("http://weights.invalid/w.pth"))
    monkeypatch.setenv("http_proxy", server.url)
    server.on("http://weights.invalid/w.pth", serve(GOOD))
    assert fetch(record_of("http://weights.invalid/w.pth")).content == GOOD


def test_credentials_are_not_sent_on(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as other:
        server.on("/mirror/a%20b.pth", redirect("/next"))
        server.on("/next", redirect(other.on("/c", serve(GOOD))))
        monkeypatch.setenv("HARDNET_MIRROR", server.url.replace("http://", "http://user:p%40ss@") + "/mirror/")
        assert fetch(record_of("https://x.invalid/a b.pth")).content == GOOD
        assert [request.headers.get("authorization") for request in server.requests] == ["Basic dXNlcjpwQHNz", None]
        assert "authorization" not in other.requests[0].headers


@pytest.mark.parametrize(
    "address",
    [
        "http://user:a/SECRET@host/",
        "http://127.0.0.1:9/x?token=SECRET",
        "http://user:SECRET@ho\u2100st/",  # urlsplit quotes all of it in its error
    ],
)
def test_no_message_shows_a_secret(
    address: str, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(WeightsError) as caught:
        fetch(record_of(address + ("" if "token" in address else "w.pth")))
    assert "SECRET" not in redact(address) + str(caught.value) + caplog.text
    monkeypatch.setenv("HARDNET_MIRROR", address)
    with pytest.raises(WeightsError, match="HARDNET_MIRROR is not valid") as caught:
        fetch(record_of(server.on("/a.pth", serve(GOOD))))
    assert caught.value.__cause__ is None
    assert "SECRET" not in str(caught.value) + caplog.text
    assert server.requests == []


def test_a_valid_address_is_shown_without_credentials(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert redact("https://user:SECRET@host:1/x.pth?token=SECRET#y") == "https://host:1/x.pth"
    monkeypatch.setenv("HARDNET_MIRROR", server.url.replace("http://", "http://user:SECRET@"))
    server.on("/w.pth?token=SECRET", serve(OTHER))
    with pytest.raises(WeightsError) as caught:
        fetch(record_of(server.url + "/w.pth?token=SECRET"))
    assert f"{server.url}/w.pth: HTTP Error 404: Not Found" in str(caught.value)
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
    for name, content, address in (("a.pth", GOOD, str(mirror)), ("b.pth.zip", ZIPPED, f" {mirror}/ ")):
        (mirror / name).write_bytes(content)
        monkeypatch.setenv("HARDNET_MIRROR", address)
        file = fetch(record)
        assert file.content == GOOD == file.path.read_bytes()
        file.path.unlink()
        (mirror / name).unlink()
    assert server.requests == []
    (mirror / "a.pth").write_bytes(OTHER)  # checked like a source
    (mirror / "b.pth.zip").mkdir()
    assert fetch(record).content == GOOD
    assert f"{mirror / 'a.pth'}: not the file" in caplog.text
    assert f"{mirror / 'b.pth.zip'}: cannot be read" in caplog.text


def test_offline_mode_makes_no_request(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, mirror: Path) -> None:
    record = record_of(server.on("/a.pth", serve(GOOD)))
    monkeypatch.setenv("HARDNET_OFFLINE", " YES ")
    monkeypatch.setenv("HARDNET_MIRROR", server.url + "/mirror")
    with pytest.raises(WeightsError, match="HARDNET_OFFLINE") as caught:
        fetch(record)
    assert f"{server.url}/a.pth: not tried" in str(caught.value)
    (mirror / "a.pth").write_bytes(GOOD)
    monkeypatch.setenv("HARDNET_MIRROR", str(mirror))
    assert fetch(record).content == GOOD
    monkeypatch.delenv("HARDNET_MIRROR")
    fetch(record).path.unlink()  # from the cache
    assert server.requests == []
    monkeypatch.setenv("HARDNET_OFFLINE", "No")
    assert fetch(record).content == GOOD


def test_a_damaged_file_of_the_package_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "__file__", str(tmp_path / "weights" / "download.py"))
    (tmp_path / "tiny.pth").write_bytes(OTHER)
    with pytest.raises(WeightsError, match=f"tiny.pth: .*{WRONG}"):
        fetch(record_of("package:tiny.pth"))
    assert (tmp_path / "tiny.pth").read_bytes() == OTHER


def test_a_cache_that_cannot_be_written_is_named(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "torch_home").write_bytes(b"a file")
    with pytest.raises(WeightsError, match="TORCH_HOME"):
        fetch(record_of(server.on("/a.pth", serve(GOOD))))
    assert server.requests == []


WORKERS = """
import os, sys
from hardnet.weights.catalog import Digest, Source, WeightsRecord
from hardnet.weights.download import cache_dir, fetch

url, value = sys.argv[1:]
record = WeightsRecord("hardnet68", "TEST_V1", (Source(url, Digest("sha256", value)),), "x", 1.0, 1.0, "x")
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
