"""Caches on machines that are full, forbidden, shared with strangers or set up wrongly."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from http_server import ScriptedServer, serve
from made_records import GOOD, OTHER, POLICY, cached_names, packed, place, record_of

import hardnet
from hardnet import WeightsError, create_model
from hardnet.engines.cache import artifacts_dir, from_artifact
from hardnet.utils import files
from hardnet.weights.catalog import WeightsRecord
from hardnet.weights.download import cache_dir, fetch

pytestmark = [
    pytest.mark.usefixtures("clean_environment"),
    pytest.mark.skipif(os.name != "posix", reason="limits, modes and links as POSIX has them"),
]

NOBODY = 65534
as_root = pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="becoming another user takes root")


@pytest.fixture
def record(server: ScriptedServer) -> WeightsRecord:
    return record_of(server.on("/w.pth", serve(GOOD)))


def refused(record: WeightsRecord, *said: str) -> None:
    with pytest.raises(WeightsError) as caught:
        fetch(record, policy=POLICY)
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize("archived", [False, True])
def test_a_disk_that_is_full_after_any_number_of_bytes(server: ScriptedServer, archived: bool) -> None:
    resource = pytest.importorskip("resource")
    url = server.on("/w.pth.zip", serve(packed(GOOD))) if archived else server.on("/w.pth", serve(GOOD))
    record = record_of(url)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in range(0, len(GOOD), len(GOOD) // 25):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            refused(record, "cannot be written: ", "TORCH_HOME")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert cached_names() == []
    assert fetch(record, policy=POLICY).content == GOOD


QUICK = ("download", "checkpoint", "npz", "csv", "torchscript")
SLOW = ("onnx", "openvino", "torch-export", "aoti")  # some seconds for each attempt


def mounting(folder: Path) -> list[str]:
    """The beginning of a command that may mount a disk there, for itself alone; skip where the system forbids it."""
    said = ""
    for namespace in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        try:
            subprocess.run(
                [*namespace, "mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True, capture_output=True, text=True
            )
        except FileNotFoundError as error:
            pytest.skip(f"a disk of our own takes unshare and mount: {error}")
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip()
        else:
            return namespace
    pytest.skip(f"a disk of our own takes leave to mount one: {said}")


@pytest.mark.parametrize("kinds", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["quick", "slow"])
@pytest.mark.parametrize("disk", ["limit", "tmpfs"])
def test_a_full_disk(server: ScriptedServer, tmp_path: Path, disk: str, kinds: tuple[str, ...]) -> None:
    """On a real one, and on files that may not grow, which every system has: one error, the file from before stays."""
    pytest.importorskip("resource")
    folder = tmp_path / "disk"
    folder.mkdir()
    beginning = []
    if disk == "tmpfs":
        beginning = [*mounting(folder), "sh", "-c", 'mount -t tmpfs -o size=60m tmpfs "$0" && exec "$@"', str(folder)]
    else:
        kinds = tuple(kind for kind in kinds if kind != "aoti")  # the limit would be the compiler's, too
    script, url = Path(__file__).parent / "full_disk.py", server.on("/w.pth", serve(GOOD))
    arguments = [script, disk, ",".join(kinds), folder, url, hashlib.sha256(GOOD).hexdigest()]
    done = subprocess.run(
        [*beginning, sys.executable, "-W", "ignore", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(hardnet.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {kind: [] for kind in kinds}
    assert list(folder.iterdir()) == [] or disk == "limit"  # the mount has gone with the process


def test_a_converted_model_that_cannot_be_kept_is_used_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    folders = []

    def build(folder: Path) -> None:
        folders.append(folder)
        (folder / "model").write_bytes(b"half")
        if folder.parent == artifacts_dir():
            raise OSError(errno.ENOSPC, "No space left on device")
        (folder / "model").write_bytes(b"whole")

    assert from_artifact("key", build, lambda folder: (folder / "model").read_bytes()) == b"whole"
    assert "the converted model is not kept: [Errno 28] No space left on device" in caplog.text
    assert list(artifacts_dir().iterdir()) == []
    assert not any(folder.exists() for folder in folders)


def test_a_folder_where_the_file_should_be(record: WeightsRecord) -> None:
    folder = cache_dir() / record.cache_filename(record.sources[0])
    folder.mkdir(parents=True)
    (folder / "kept").write_bytes(b"")
    refused(record, "cannot be written: ", "s a directory", folder.name)
    assert cached_names() == [folder.name]
    assert (folder / "kept").exists()


def test_a_folder_where_the_lock_should_be(record: WeightsRecord, caplog: pytest.LogCaptureFixture) -> None:
    (cache_dir() / "hardnet-hardnet68-test_v1.lock").mkdir(parents=True)
    assert fetch(record, policy=POLICY).content == GOOD
    assert "going on without it" in caplog.text


@pytest.mark.parametrize("content", [b"precious", OTHER])
def test_a_planted_link_changes_nothing_elsewhere(record: WeightsRecord, tmp_path: Path, content: bytes) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(content)
    target = cache_dir() / record.cache_filename(record.sources[0])
    target.parent.mkdir(parents=True)
    target.symlink_to(victim)
    assert fetch(record, policy=POLICY).content == GOOD
    assert victim.read_bytes() == content
    assert not target.is_symlink()
    assert target.read_bytes() == GOOD


def test_a_planted_lock_changes_nothing_elsewhere(record: WeightsRecord, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    cache_dir().mkdir(parents=True)
    (cache_dir() / "hardnet-hardnet68-test_v1.lock").symlink_to(victim)
    assert fetch(record, policy=POLICY).content == GOOD
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("link", ["nowhere", "itself"])
def test_a_link_to_nothing(record: WeightsRecord, tmp_path: Path, link: str) -> None:
    target = cache_dir() / record.cache_filename(record.sources[0])
    target.parent.mkdir(parents=True)
    target.symlink_to(target if link == "itself" else tmp_path / "nowhere")
    assert fetch(record, policy=POLICY).content == GOOD
    assert target.read_bytes() == GOOD
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("home", [None, "/nonexistent/home", "/dev/null"])
def test_without_a_home_the_librarys_own_weights_work(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
    else:
        monkeypatch.setenv("HOME", home)
    assert create_model("hardnet39ds", weights="FASHION_MNIST").num_classes == 10


def test_a_home_that_cannot_be_is_named(record: WeightsRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    refused(record, "/dev/null/.cache/torch", "cannot be written", "TORCH_HOME")


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache in a place that other users reach; pytest's own folders they do not."""
    home = Path(tempfile.mkdtemp())
    home.chmod(0o755)
    monkeypatch.setenv("TORCH_HOME", str(home))
    (home / "hub" / "checkpoints").mkdir(parents=True)
    yield home / "hub" / "checkpoints"
    shutil.rmtree(home)


def as_nobody(work: Callable[[], None]) -> None:
    """Run in a process of another user, and fail where it fails there."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            work()
            status = 0
        except BaseException:
            os.write(writing, traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said


@as_root
def test_another_user_may_read_but_not_write(record: WeightsRecord, shared: Path) -> None:
    as_nobody(lambda: refused(record, str(shared), "cannot be written", "Permission denied", "TORCH_HOME"))
    assert cached_names() == []
    path = place(record, GOOD)
    as_nobody(lambda: check_path(record, path))
    path.write_bytes(OTHER)
    as_nobody(lambda: refused(record, "cannot be written"))
    assert path.read_bytes() == OTHER
    assert [name for name in cached_names() if name != path.name] == []


@as_root
def test_a_file_that_another_user_may_not_read(record: WeightsRecord, shared: Path) -> None:
    path = place(record, GOOD)
    path.chmod(0o600)
    shared.chmod(0o777)
    as_nobody(lambda: check_path(record, path))
    assert path.stat().st_uid == NOBODY  # a file of their own in its place
    assert path.read_bytes() == GOOD
    assert path.stat().st_mode & 0o444


@as_root
def test_in_a_folder_with_the_sticky_bit_the_others_file_stays(record: WeightsRecord, shared: Path) -> None:
    path = place(record, OTHER)
    path.chmod(0o644)
    shared.chmod(0o1777)
    as_nobody(lambda: refused(record, "cannot be written"))
    assert path.read_bytes() == OTHER
    assert [name for name in cached_names() if name != path.name] == []


def check_path(record: WeightsRecord, path: Path) -> None:
    found = fetch(record, policy=POLICY)
    assert found.content == GOOD
    assert found.path == path


@pytest.mark.parametrize("kind", ["link", "FIFO", "folder"])
def test_what_looks_like_a_temporary_file_of_ours_and_is_none(record: WeightsRecord, tmp_path: Path, kind: str) -> None:
    """Whoever may write to the cache may plant it."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    cache_dir().mkdir(parents=True)
    planted = cache_dir() / f"hardnet-x.pth.{files._host()}-0123456789ab.part"
    make = {"link": lambda: planted.symlink_to(victim), "FIFO": lambda: os.mkfifo(planted), "folder": planted.mkdir}
    make[kind]()
    assert fetch(record, policy=POLICY).content == GOOD  # and does not hang
    assert victim.read_bytes() == b"precious"
