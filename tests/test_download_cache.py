"""Downloads under hardship: caches that cannot be written, interruptions, several processes at once."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest
from http_server import ScriptedServer, serve, stalling
from made_records import (
    GOOD,
    OTHER,
    POLICY,
    cached_names,
    digest_of,
    place,
    record_of,
)

import hardnet
from hardnet.utils.errors import WeightsError
from hardnet.weights import download
from hardnet.weights.download import Policy, cache_dir, fetch

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_an_unwritable_cache_is_an_error_before_anything_is_asked(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "torch_home").write_bytes(b"in the way")
    record = record_of(server.on("/a.pth", serve(GOOD)), server.on("/b.pth", serve(GOOD)))
    with pytest.raises(WeightsError, match=r"the cache folder .*torch_home.* cannot be written"):
        fetch(record, policy=POLICY)
    assert server.seen == []
    assert (tmp_path / "torch_home").read_bytes() == b"in the way"


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make the cache read-only; the superuser, whom modes do not stop, included."""

    def denied(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    def start() -> None:
        real = Path.open
        monkeypatch.setattr(Path, "open", lambda self, mode="r": real(self, mode) if mode == "rb" else denied())
        monkeypatch.setattr(Path, "replace", denied)
        monkeypatch.setattr(filelock.FileLock, "acquire", denied)

    return start


def test_a_read_only_cache_serves_a_good_file(server: ScriptedServer, read_only: Callable[[], None]) -> None:
    record = record_of(server.on("/a.pth", serve(GOOD)))
    path = place(record, GOOD)
    read_only()
    assert fetch(record, policy=POLICY).path == path


def test_a_read_only_cache_with_a_bad_file_is_an_error(
    server: ScriptedServer, read_only: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    record = record_of(server.on("/a.pth", serve(GOOD)))
    path = place(record, OTHER)
    read_only()
    with pytest.raises(WeightsError, match="Read-only file system"):
        fetch(record, policy=POLICY)
    assert "is damaged and is ignored" in caplog.text
    assert "going on without it" in caplog.text
    assert path.read_bytes() == OTHER
    assert cached_names() == [path.name]


def test_a_full_disk_is_an_error_and_leaves_nothing(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: download.cache.Temporary, chunk: bytes) -> None:
        with download.cache._cache_errors(cache_dir()):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.cache.Temporary, "write", write)
    record = record_of(server.on("/a.pth", serve(GOOD)), server.on("/b.pth", serve(GOOD)))
    with pytest.raises(WeightsError, match="No space left on device"):
        fetch(record, policy=POLICY)
    assert cached_names() == []
    assert (server.hits("/a.pth"), server.hits("/b.pth")) == (1, 0)  # the next source would fare no better


@pytest.mark.skipif(os.name != "posix", reason="a signal to oneself that interrupts a wait is a POSIX feature")
def test_an_interrupted_download_leaves_nothing(server: ScriptedServer) -> None:
    release = threading.Event()
    record = record_of(server.on("/a.pth", stalling(GOOD, len(GOOD) // 2, release)))
    parts: list[Path] = []

    def interrupt() -> None:
        deadline = time.monotonic() + 20
        while not (server.hits("/a.pth") and parts) and time.monotonic() < deadline:
            time.sleep(0.02)
            parts[:] = cache_dir().glob("*.part")
        time.sleep(0.1)  # by then the first half is there, and the download waits for the second
        os.kill(os.getpid(), signal.SIGINT)

    # A shell starts what it runs in the background with the signal ignored; Python then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            fetch(record, policy=Policy(stall_timeout=20))
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
        release.set()
    assert len(parts) == 1
    assert cached_names() == []
    server.on("/a.pth", serve(GOOD))
    assert fetch(record, policy=POLICY).content == GOOD  # the turn was given back, too


WORKERS = """
import os, sys, time
from hardnet.weights.catalog import Digest, Source, WeightsRecord
from hardnet.weights.download import Policy, cache_dir, fetch

url, value = sys.argv[1:]
record = WeightsRecord("hardnet68", "TEST_V1", (Source(url, Digest("sha256", value), "x"),), "x", 1.0, 1.0, "x")
cache_dir()
workers = []
for _ in range(16):
    pid = os.fork()  # after the imports, so that all of them start at once
    if pid == 0:
        found = fetch(record, policy=Policy(lock_timeout=60))
        os._exit(0 if found.content == found.path.read_bytes() else 3)
    workers.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks its processes, a POSIX feature")
def test_sixteen_processes_download_once(server: ScriptedServer) -> None:
    def slowly(handler: object) -> None:
        time.sleep(0.5)  # so that all of them want it before one has it
        serve(GOOD)(handler)  # type: ignore[arg-type]

    url = server.on("/w.pth", slowly)
    environment = {**os.environ, "PYTHONPATH": str(Path(hardnet.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", WORKERS, url, digest_of(GOOD).value],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == str([0] * 16), done.stderr
    assert server.hits("/w.pth") == 1
    assert len(cached_names()) == 1


def test_without_locks_all_get_the_file_all_the_same(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    gate = threading.Barrier(4, timeout=20)

    def together(handler: object) -> None:
        gate.wait()  # all four are downloading at once
        serve(GOOD)(handler)  # type: ignore[arg-type]

    record = record_of(server.on("/w.pth", together))
    contents: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: contents.append(fetch(record, policy=Policy(attempts=1)).content))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents == [GOOD] * 4
    assert server.hits("/w.pth") == 4
    assert len(cached_names()) == 1


def test_a_held_lock_delays_but_does_not_prevent(server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    record = record_of(server.on("/w.pth", serve(GOOD)))
    cache_dir().mkdir(parents=True)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with filelock.FileLock(str(cache_dir() / "hardnet-hardnet68-test_v1.lock")):
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    assert fetch(record, policy=Policy(lock_timeout=0.1)).content == GOOD
    done.set()
    thread.join()
    assert "going on without it" in caplog.text


def test_nothing_is_printed(server: ScriptedServer, capfd: pytest.CaptureFixture[str]) -> None:
    fetch(record_of(server.on("/w.pth", serve(GOOD))), policy=POLICY)
    assert capfd.readouterr() == ("", "")
