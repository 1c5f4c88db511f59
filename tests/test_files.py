"""Atomic writes and scratch folders: complete or absent, whatever happens to the writer."""

import contextlib
import errno
import os
from pathlib import Path

import pytest

from hardnet.utils.files import open_regular, scratch_folder, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_target_is_replaced_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / ("日" * 80 + ".csv")  # 244 bytes
    target.write_bytes(b"old")
    with write_atomically(target) as first, write_atomically(target) as second:
        first.write(b"first")
        second.write(b"second")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"first"  # the last to finish
    assert names(tmp_path) == [target.name]
    (tmp_path / "plain").touch()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode  # others may read it as the umask allows


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("moment", ["writing", "flushing"])
def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, moment: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    def write() -> None:
        with write_atomically(tmp_path / "x") as file:
            file.write(b"half")
            if moment == "writing":
                fail()
            monkeypatch.setattr(os, "fsync", fail)

    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(error if isinstance(error, type) else type(error)):
        write()
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_scratch_folder_goes_with_its_content_and_what_was_moved_out_stays(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), scratch_folder(tmp_path, ".scratch-") as folder:
        (folder / "x").write_bytes(b"half")
        raise KeyboardInterrupt
    with scratch_folder(tmp_path, ".scratch-") as folder:
        folder.rename(tmp_path / "moved")
    (tmp_path / "plain").mkdir()
    assert names(tmp_path) == ["moved", "plain"]
    assert (tmp_path / "moved").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs are a POSIX feature")
@pytest.mark.parametrize("kind", ["folder", "FIFO", "device"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)  # opened without blocking
    with pytest.raises(OSError, match=r"directory|Not a regular file"):
        open_regular(path)
