"""Temporary files and folders of the dead are removed at once, those of the living never."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest
import torch

from hardnet.cli.embedding_file import EmbeddingFile
from hardnet.utils import files
from hardnet.utils.files import create_part, hidden_prefix, remove_orphans, scratch_folder
from hardnet.weights.cache import Temporary, temporary

fcntl = pytest.importorskip("fcntl", reason="locks of this kind are a POSIX feature")

OTHER_HOST = "00000000-0123456789ab.part"


def orphan(folder: Path) -> Path:
    """What the end of a process in the middle of a download leaves: the file, and no lock."""
    file = Temporary(folder / "hardnet-a.pth")
    file.write(b"half")
    file._file.close()
    return file._path


def run_once(folder: Path) -> None:
    with temporary(folder / "hardnet-b.pth") as file:
        file.commit()


def make_old(path: Path) -> None:
    os.utime(path, (time.time() - files.STALE_AFTER - 60,) * 2)


def test_an_orphan_is_removed_by_the_next_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = orphan(tmp_path)
    with caplog.at_level(logging.INFO, logger="hardnet"):
        run_once(tmp_path)
    assert not path.exists()
    assert f"removed {path.name}" in caplog.text


def test_a_living_download_is_left_alone(tmp_path: Path) -> None:
    with temporary(tmp_path / "hardnet-a.pth") as file:
        file.write(b"whole")
        run_once(tmp_path)
        make_old(file._path)  # as after a night in a closed laptop
        run_once(tmp_path)
        assert file.read() == b"whole"
        file.commit()
        run_once(tmp_path)
    assert (tmp_path / "hardnet-a.pth").read_bytes() == b"whole"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_those_of_other_hosts_are_judged_by_their_age(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"hardnet-a.pth.{OTHER_HOST}"
    if kind == "file":
        path.write_bytes(b"half")
    else:
        path.mkdir()
    run_once(tmp_path)
    assert path.exists()
    make_old(path)
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # by its host, where the file system shows locks to all
    run_once(tmp_path)
    assert path.exists()
    os.close(descriptor)
    run_once(tmp_path)
    assert not path.exists()


def test_without_locks_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = orphan(tmp_path)

    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    run_once(tmp_path)
    assert path.exists()
    monkeypatch.setattr(files, "fcntl", None)  # Windows
    run_once(tmp_path)
    assert path.exists()
    make_old(path)
    run_once(tmp_path)
    assert not path.exists()


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_two_that_write_one_file_do_not_meet(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"x{suffix}"
    with EmbeddingFile(target, 4) as first:
        first.add("first", torch.zeros(4))
        with EmbeddingFile(target, 4) as second:
            second.add("second", torch.zeros(4))
        assert b"second" in target.read_bytes().replace(b"\0", b"")
    assert b"first" in target.read_bytes().replace(b"\0", b"")
    with scratch_folder(tmp_path, hidden_prefix(target)) as folder:
        (folder / "half").write_bytes(b"")
        with scratch_folder(tmp_path, hidden_prefix(target)):
            assert (folder / "half").exists()
    assert list(tmp_path.iterdir()) == [target]


def test_a_long_extraction_stays_young_where_there_are_no_locks(tmp_path: Path) -> None:
    with EmbeddingFile(tmp_path / "x.npz", 4) as file:
        make_old(file._temporary)
        file.add("a", torch.zeros(4))
        assert time.time() - file._temporary.stat().st_mtime < files.STALE_AFTER


@pytest.mark.parametrize("moment", ["removed before the lock", "locked by the remover"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_was_taken_for_an_orphan_before_it_was_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, moment: str
) -> None:
    real, calls = files._lock, [0]

    def lock(descriptor: int) -> bool | None:
        calls[0] += 1
        if calls[0] == 1 and moment == "removed before the lock":
            [path] = tmp_path.glob("*.part")
            path.unlink() if kind == "file" else path.rmdir()
        return False if calls[0] == 1 and moment == "locked by the remover" else real(descriptor)

    monkeypatch.setattr(files, "_lock", lock)
    if kind == "file":
        path, file = create_part(tmp_path, "x.")
        file.close()
        assert path.exists()
    else:
        with scratch_folder(tmp_path, "x.") as path:
            (path / "whole").write_bytes(b"")
    assert calls == [2]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_orphan_is_locked_until_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Else its maker, who has not locked it yet, could take it for its own in between."""
    path = tmp_path / f"x.{files._host()}-0123456789ab.part"
    path.mkdir() if kind == "folder" else path.write_bytes(b"")
    real, seen = os.rmdir if kind == "folder" else os.unlink, []

    def remove(name: object, **keywords: object) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        seen.append(files._lock(descriptor))
        os.close(descriptor)
        real(name, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rmdir" if kind == "folder" else "unlink", remove)
    remove_orphans(tmp_path, "x.")
    assert seen == [False]
    assert not path.exists()


@pytest.mark.parametrize("kind", ["FIFO", "link"])
def test_what_is_put_in_an_orphans_place_is_not_waited_for_or_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path, victim = tmp_path / f"x.{files._host()}-0123456789ab.part", tmp_path / "victim"
    path.write_bytes(b"")
    os.mkfifo(victim) if kind == "link" else victim.write_bytes(b"precious")
    real = os.lstat

    def swapped(name: object, **keywords: object) -> os.stat_result:  # after the look at it, before it is opened
        status = real(name, **keywords)  # type: ignore[arg-type]
        path.unlink()
        path.symlink_to(victim) if kind == "link" else os.mkfifo(path)
        return status

    monkeypatch.setattr(Path, "lstat", lambda self: swapped(self))
    remove_orphans(tmp_path, "x.")  # and does not hang
    assert victim.exists()


def test_names_that_only_look_alike_stay(tmp_path: Path) -> None:
    target = tmp_path / "x[1].npz"
    mine, host = hidden_prefix(target), files._host()
    stay = ("x.part", f".x1.npz.{host}-0123456789ab.part", f"{mine}part", f"{mine}{host}-0123456789ab.npz")
    for name in (*stay, f"{mine}{host}-0123456789ab.part"):
        (tmp_path / name).write_bytes(b"")
    EmbeddingFile(target, 4).__exit__(None, None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*stay, target.name])


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    with EmbeddingFile(tmp_path / ("日" * 80 + ".csv"), 4) as file:
        file.add("a", torch.zeros(4))
    assert [len(path.name.encode()) for path in tmp_path.iterdir()] == [244]


def test_another_users_files_are_left_to_their_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = orphan(tmp_path)
    real = os.open

    def refuse(name: object, *arguments: object, **keywords: object) -> int:
        if name == path:
            raise PermissionError(13, "Permission denied")
        return real(name, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    run_once(tmp_path)
    assert path.exists()
