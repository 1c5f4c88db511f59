"""The cache folder: whole files or none, bad ones set aside, turns taken where that is possible."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import filelock
import pytest
import torch.hub

from hardnet.utils import files
from hardnet.weights.cache import CacheError, cache_dir, read_bounded, set_aside, temporary, turn


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_is_torch_hubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / "hub" / "checkpoints"
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "set"))
    assert cache_dir() == tmp_path / "set" / "checkpoints"
    assert names(tmp_path) == []  # asking makes nothing


def test_a_committed_file_is_whole_and_alone(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "hardnet-x.pth"
    with temporary(target) as file:
        file.write(b"thrown away")
        file.restart()
        assert file.size == 0
        file.write(b"one ")
        file.write(b"two")
        assert file.size == 7
        assert file.read() == b"one two"
        file.write(b"!")
        assert not target.exists()
        file.commit()
    assert target.read_bytes() == b"one two!"
    assert names(target.parent) == ["hardnet-x.pth"]


def test_a_file_replaces_its_predecessor_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "hardnet-x.pth"
    target.write_bytes(b"old")
    with temporary(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
        file.commit()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_remains_of_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with temporary(tmp_path / "hardnet-x.pth") as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == []


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "hardnet-x.pth"
    with temporary(target) as one, temporary(target) as two:
        one.write(b"one")
        two.write(b"two")
        assert len(names(tmp_path)) == 2
        one.commit()
        assert target.read_bytes() == b"one"
        two.commit()
    assert target.read_bytes() == b"two"
    assert names(tmp_path) == ["hardnet-x.pth"]


@pytest.mark.skipif(os.name != "posix", reason="file modes are a POSIX feature")
def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with temporary(tmp_path / "hardnet-x.pth") as file:
            file.commit()
    finally:
        os.umask(before)
    assert (tmp_path / "hardnet-x.pth").stat().st_mode & 0o777 == 0o644


class FullDisk:
    """A file on a disk that has room for ``room`` bytes."""

    def __init__(self, file: object, room: int) -> None:
        self._file, self._room = file, room

    def write(self, chunk: bytes) -> int:
        self._room -= len(chunk)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(chunk)  # type: ignore[attr-defined, no-any-return]

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


def test_a_full_disk_is_an_error_that_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode: FullDisk(real(self, mode), 5) if "x" in mode else real(self, mode)
    )
    with temporary(tmp_path / "a.pth") as file:
        file.write(b"12345")
        with pytest.raises(CacheError, match=r"No space left.*TORCH_HOME") as caught:
            file.write(b"6")
    assert str(tmp_path) in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the always full device is a Linux feature")
def test_a_disk_found_full_only_when_the_buffer_is_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with temporary(tmp_path / "a.pth") as file, Path("/dev/full").open("r+b") as full:
        file._file.close()
        file._file = full  # type: ignore[assignment]
        file.write(b"fits the buffer")
        with pytest.raises(CacheError, match="No space left"):
            file.commit()
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for target in (tmp_path / "file" / "x.pth", tmp_path / "file" / "deeper" / "x.pth"):
        with pytest.raises(CacheError, match="cannot be written"), temporary(target):
            pytest.fail("there is no folder to write to")
    (tmp_path / "x.pth").mkdir()
    with pytest.raises(CacheError, match="cannot be written"), temporary(tmp_path / "x.pth") as file:
        file.commit()
    assert names(tmp_path) == ["file", "x.pth"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    old, young = files.STALE_AFTER + 60, files.STALE_AFTER - 60
    ages = {
        "hardnet-a.pth.00000000-0123456789ab.part": old,
        "hardnet-b.pth.00000000-0123456789ab.part": young,
        "hardnet-c.pth": old,
        "other-d.pth.00000000-0123456789ab.part": old,
        "hardnet-e.pth.bad-01234567": old,
        "hardnet-f.lock": old,
    }
    for name, age in ages.items():
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with temporary(tmp_path / "hardnet-new.pth") as file:
        file.commit()
    assert names(tmp_path) == sorted([*ages, "hardnet-new.pth"])[1:]
    assert files.STALE_AFTER >= 24 * 3600  # longer than any download that still moves


def test_reading_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bounded(tmp_path / "x", 10)[0] == b"12345"
    assert read_bounded(tmp_path / "x", 5)[0] == b"12345"
    assert read_bounded(tmp_path / "x", 3)[0] == b"1234"


@pytest.mark.skipif(os.name != "posix", reason="FIFOs and devices as POSIX has them")
def test_only_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):  # though they were put there after the look at them
        with pytest.raises(OSError, match="Not a regular file"):
            read_bounded(path, 10)  # and does not hang


def test_a_bad_file_is_set_aside_under_a_name_of_its_content(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "hardnet-x.pth"
    for content in (b"bad", b"bad", b"worse", b"bad"):
        path.write_bytes(content)
        assert not set_aside(path, *read_bounded(path, 100))
    assert len(names(tmp_path)) == 2
    assert {entry.read_bytes() for entry in tmp_path.iterdir()} == {b"bad", b"worse"}
    assert all(name.startswith("hardnet-x.pth.bad-") for name in names(tmp_path))
    assert names(tmp_path)[0] in caplog.text


def test_a_file_that_was_replaced_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "hardnet-x.pth"
    path.write_bytes(b"bad")
    read = read_bounded(path, 100)
    (tmp_path / "new").write_bytes(b"fine")
    (tmp_path / "new").replace(path)
    assert set_aside(path, *read)
    assert path.read_bytes() == b"fine"
    path.unlink()
    assert set_aside(path, *read)


def test_turns_are_taken(tmp_path: Path) -> None:
    lock, inside, most = tmp_path / "hardnet-x.lock", [0], [0]

    def work() -> None:
        with turn(lock, 20):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.03)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_the_turn_ends_with_the_block_however_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, real = [], filelock.FileLock

    def make(path: str) -> filelock.BaseFileLock:
        made.append(real(path))  # kept, since a lock that is thrown away is released as well
        return made[-1]

    monkeypatch.setattr(filelock, "FileLock", make)
    with turn(tmp_path / "x.lock", 1):
        assert made[0].is_locked
    with pytest.raises(KeyError), turn(tmp_path / "x.lock", 1):
        raise KeyError
    assert [lock.is_locked for lock in made] == [False, False]


def test_waiting_for_a_turn_has_an_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    holder = filelock.FileLock(str(tmp_path / "x.lock"))
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with holder:
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    entered = False
    with caplog.at_level("INFO", logger="hardnet"), turn(tmp_path / "x.lock", 0.1):
        entered = thread.is_alive()
    done.set()
    thread.join()
    assert entered
    assert "waiting for another process" in caplog.text
    assert "still held after 0.1 seconds; going on without it" in caplog.text


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "denied"), NotImplementedError("no flock")])
def test_where_locks_do_not_work_there_are_no_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    entered = False
    with turn(tmp_path / "x.lock", 1):
        entered = True
    assert entered
    assert "going on without it" in caplog.text


def test_where_a_lock_cannot_be_made_there_are_no_turns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.lock").mkdir()
    for lock in (tmp_path / "file" / "x.lock", tmp_path / "folder.lock"):
        caplog.clear()
        entered = False
        with turn(lock, 0.2):
            entered = True
        assert entered
        assert "going on without it" in caplog.text
