"""Temporary files of the dead are removed at once, those of the living never."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from hardnet.download import cache
from hardnet.download.cache import Temporary, temporary

fcntl = pytest.importorskip("fcntl", reason="locks of this kind are a POSIX feature")


def orphan(folder: Path) -> Path:
    """What the end of a process in the middle of a download leaves: the file, and no lock."""
    file = Temporary(folder / "hardnet-a.pth")
    file.write(b"half")
    file._file.close()
    return file._path


def run_once(folder: Path) -> None:
    with temporary(folder / "hardnet-b.pth") as file:
        file.commit()


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
        assert file.read() == b"whole"
        file.commit()
        run_once(tmp_path)
    assert (tmp_path / "hardnet-a.pth").read_bytes() == b"whole"


def test_files_of_other_hosts_are_judged_by_their_age_alone(tmp_path: Path) -> None:
    path = tmp_path / "hardnet-a.pth.00000000-0123456789ab.part"
    path.write_bytes(b"half")
    run_once(tmp_path)
    assert path.exists()
    os.utime(path, (time.time() - cache.STALE_AFTER - 60,) * 2)
    run_once(tmp_path)
    assert not path.exists()


def test_without_locks_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = orphan(tmp_path)

    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    run_once(tmp_path)
    assert path.exists()
    monkeypatch.setattr(cache, "fcntl", None)  # Windows
    run_once(tmp_path)
    assert path.exists()


@pytest.mark.parametrize("moment", ["removed before the lock", "locked by the remover"])
def test_a_file_that_was_taken_for_an_orphan_before_it_was_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    real, calls = cache._lock, [0]

    def lock(file: object) -> bool | None:
        calls[0] += 1
        if calls[0] == 1 and moment == "removed before the lock":
            next(tmp_path.glob("*.part")).unlink()
        return False if calls[0] == 1 and moment == "locked by the remover" else real(file)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "_lock", lock)
    file = Temporary(tmp_path / "hardnet-a.pth")
    file.write(b"whole")
    file.commit()
    assert calls == [2]
    assert (tmp_path / "hardnet-a.pth").read_bytes() == b"whole"
