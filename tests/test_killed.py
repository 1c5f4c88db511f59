"""Processes that die at any moment: the next one succeeds, and nothing of the dead one is left."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from http_server import Handler, running

import hardnet

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks and kills, POSIX features")

CONTENT = b"\x80\x02" + random.Random(7).randbytes(2_000_000)  # noqa: S311  test data
KINDS = ("download", "verify", "replace", "checkpoint")


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
            [sys.executable, script, ",".join(kinds), url, sha256, str(rounds), str(folder)],
            env={**os.environ, "PYTHONPATH": str(Path(hardnet.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    results: dict[str, dict[str, object]] = json.loads(done.stdout)
    assert tuple(results) == kinds
    for result in results.values():
        assert result["wrong"] == []
        assert result["rounds"] == rounds
    return results


def test_a_few_kills(tmp_path: Path) -> None:
    kill(KINDS, 3, tmp_path)


@pytest.mark.slow
def test_fifty_kills_of_each_kind(tmp_path: Path) -> None:
    for kind, result in kill(KINDS, 50, tmp_path).items():
        if kind != "verify":  # which writes nothing
            assert result["left"], f"no kill of {kind} hit a moment at which there was something to clean up"
