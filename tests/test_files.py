"""Atomic writes and scratch folders: complete or absent, whatever happens to the writer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import hardnet
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


WRITER = """
import sys, time
from pathlib import Path
from hardnet.utils.files import scratch_folder, write_atomically

target = Path(sys.argv[1])
with write_atomically(target) as file, scratch_folder(target.parent, ".scratch-") as folder:
    file.write(bytes(100_000))
    (folder / "x").write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


def _work(folder: Path) -> None:
    with write_atomically(folder / "x") as file, scratch_folder(folder, ".scratch-"):
        file.write(b"new")


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX signal")
def test_leftovers_of_a_killed_writer_are_removed_and_those_of_a_live_one_stay(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(hardnet.__file__).parents[1])}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "x")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        for folder in tmp_path.iterdir():
            os.utime(folder, (0, 0))  # new ones are left alone
        _work(tmp_path)
        assert len(names(tmp_path)) == 3  # the new file, and the writer's two folders
        writer.send_signal(signal.SIGKILL)
    assert len(names(tmp_path)) == 3
    assert (tmp_path / "x").read_bytes() == b"new"
    _work(tmp_path)
    assert names(tmp_path) == ["x"]


def test_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / ".x.0123456789ab.part").symlink_to(tmp_path / "other")
    (tmp_path / ".y.0123456789ab.part").write_bytes(b"")
    before = names(tmp_path)
    _work(tmp_path)
    assert names(tmp_path) == sorted([*before, "x"])


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
