"""Processes that die at any moment: the next one succeeds, and nothing of the dead one is left."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from http_server import Handler, running
from PIL import Image

import hardnet

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks and kills, POSIX features")

CONTENT = b"\x80\x02" + random.Random(7).randbytes(2_000_000)  # noqa: S311  test data
KILLS = 50
"""Of each kind, in the slow tests."""
KINDS = ("download", "verify", "replace", "checkpoint", "extract", "export")


def in_pieces(handler: Handler) -> None:
    """Send the file over some hundredths of a second, so that there are moments within the transfer."""
    handler.start(200, {"Content-Type": "application/octet-stream", "Content-Length": str(len(CONTENT))})
    for start in range(0, len(CONTENT), 250_000):
        handler.wfile.write(CONTENT[start : start + 250_000])
        time.sleep(0.004)


def kill(kinds: tuple[str, ...], rounds: int, folder: Path) -> dict[str, dict[str, object]]:
    with running() as server:
        url, sha256 = server.on("/w.pth", in_pieces), hashlib.sha256(CONTENT).hexdigest()
        script = str(Path(__file__).parent / "killed_work.py")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", script, ",".join(kinds), url, sha256, str(rounds), str(folder)],
            env={**os.environ, "PYTHONPATH": str(Path(hardnet.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1800,
        )
    assert done.returncode == 0, done.stderr
    results: dict[str, dict[str, object]] = json.loads(done.stdout)
    assert tuple(results) == kinds
    for result in results.values():
        assert result["wrong"] == []
        assert result["rounds"] == rounds
    return results


def test_a_few_kills(tmp_path: Path) -> None:
    kill(KINDS, 2, tmp_path)


@pytest.mark.parametrize(
    "kinds", [pytest.param(KINDS[:4], marks=pytest.mark.slow), pytest.param(KINDS[4:], marks=pytest.mark.slower)]
)
def test_fifty_kills_of_each_kind(kinds: tuple[str, ...], tmp_path: Path) -> None:
    for kind, result in kill(kinds, KILLS, tmp_path).items():
        print(kind, result)
        if kind != "verify":  # which writes nothing
            assert result["left"], f"no kill of {kind} hit a moment at which there was something to clean up"


COMMANDS = {
    "x.npz": ("extract", "pictures", "--model", "hardnet39ds"),
    "x.csv": ("extract", "pictures", "--model", "hardnet39ds"),
    "x.pt": ("export", "hardnet39ds", "--format", "torchscript"),
}
"""What writes them, without the weights."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for number in range(100):
        Image.new("RGB", (40, 40), "red").save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path


def start(folder: Path, output: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "hardnet", *COMMANDS[output], "--weights", "FASHION_MNIST", "--output", output],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(hardnet.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def beside(folder: Path) -> list[Path]:
    """Temporary files and folders, and what is in these."""
    return [path for top in folder.glob(".x*") for path in (top, *top.rglob("*"))]


def wait_for(process: subprocess.Popen[bytes], folder: Path, written: bool) -> None:
    """Wait until there is a temporary file or folder, or something in it."""
    while process.poll() is None:
        found = beside(folder)
        if found and (not written or any(path.is_file() and path.stat().st_size for path in found)):
            return
        time.sleep(0.001)
    pytest.fail(f"the command ended with {process.returncode} before its moment")


def check_output(path: Path) -> None:
    if path.suffix == ".pt":
        torch.jit.load(str(path))
    elif path.suffix == ".npz":
        with np.load(path) as content:
            assert content["embeddings"].shape == (100, 1024)
    else:
        assert len(path.read_text().splitlines()) == 101


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "written"),  # of an .npz, the rows wait in a file without a name
    [("x.npz", False), ("x.csv", False), ("x.csv", True), ("x.pt", False), ("x.pt", True)],
)
def test_a_command_that_is_killed_leaves_the_file_from_before_and_the_next_one_tidies_up(
    folder: Path, output: str, written: bool
) -> None:
    (folder / output).write_bytes(b"from before")
    with start(folder, output) as process:
        wait_for(process, folder, written)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert (folder / output).read_bytes() == b"from before"
    assert beside(folder) != []
    with start(folder, output) as process:
        assert process.wait(120) == 0
    assert beside(folder) == []
    check_output(folder / output)


@pytest.mark.slow
@pytest.mark.parametrize("output", COMMANDS)
def test_a_command_that_sleeps_meanwhile_keeps_its_file(folder: Path, output: str) -> None:
    with start(folder, output) as sleeper:
        wait_for(sleeper, folder, written=False)
        sleeper.send_signal(signal.SIGSTOP)
        kept = beside(folder)
        with start(folder, output) as process:
            assert process.wait(120) == 0
        check_output(folder / output)
        assert all(path.exists() for path in kept)
        (folder / output).unlink()
        sleeper.send_signal(signal.SIGCONT)
        assert sleeper.wait(120) == 0
    assert beside(folder) == []
    check_output(folder / output)
