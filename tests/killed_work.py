"""Work to be killed at any moment, and the check of what the next run finds: `killed_work.py KINDS URL SHA256 N DIR`.

KINDS are download, verify, replace, checkpoint, extract or export, with commas between them. The kills come at random
moments of the first seconds, as many as ``longest_wait`` says. Prints a JSON object that says of each kind how many
rounds there were, in how many of them the killed process left a temporary file, and every complaint.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import hardnet.cli
from hardnet.training import checkpoint_file as checkpoints
from hardnet.weights.catalog import Digest, Source, WeightsRecord
from hardnet.weights.download import Policy, cache_dir, fetch


class Fetching:
    """Fetches a record again and again: from the server, from the cache, or in place of a damaged file."""

    longest_wait = 0.15  # in which the work goes round several times

    def __init__(self, kind: str, url: str, sha256: str) -> None:
        self.kind = kind
        source = Source(url, Digest("sha256", sha256), "the tests")
        self.record = WeightsRecord("hardnet68", "TEST_V1", (source,), "made", 1.0, 1.0, "the tests")
        self.folder = cache_dir()
        self.target = self.folder / self.record.cache_filename(source)

    def once(self) -> None:
        if self.kind == "download":
            self.target.unlink(missing_ok=True)
        elif self.kind == "replace" and self.target.exists():
            content = bytearray(self.target.read_bytes())
            content[len(content) // 2] ^= 1
            self.target.write_bytes(content)
        self.fetch()

    def fetch(self) -> None:
        fetch(self.record, policy=Policy(lock_timeout=60))

    def next_run(self) -> None:
        self.fetch()
        self.target.unlink()  # the cache alone would do: the run after that has to write
        self.fetch()

    def leftovers(self) -> list[str]:
        return [path.name for path in self.folder.glob("*.part")]


class Saving:
    """Saves a training checkpoint again and again, whose content says whether it is whole."""

    longest_wait = 0.15

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run" / checkpoints.CHECKPOINT
        self.step = 0

    def once(self) -> None:
        self.step += 1
        value = torch.full((500_000,), float(self.step))
        content: dict[str, Any] = {"format": checkpoints.FORMAT, "optimizer": {}, "model": value, "step": self.step}
        checkpoints.save_atomically(content, self.path)

    def next_run(self) -> None:
        if self.path.exists():
            content = checkpoints.load(self.path)
            if not bool((content["model"] == content["step"]).all()):
                raise ValueError("a checkpoint of two halves")
        self.once()
        checkpoints.load(self.path)

    def leftovers(self) -> list[str]:
        return [path.name for path in self.path.parent.glob(".*.tmp")]


class Writing:
    """Runs the command line again and again, which writes a file."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.longest_wait = 1.0 if kind == "extract" else 3.0  # as long as it takes once, and some more
        self.path = folder / kind / ("x.npz" if kind == "extract" else "x.pt")
        self.path.parent.mkdir()
        picture = folder / "picture.png"
        Image.new("RGB", (40, 40), "red").save(picture)
        what = (str(picture), "--model") if kind == "extract" else ("--format", "torchscript")
        self.arguments = [kind, *what, "hardnet39ds", "--weights", "FASHION_MNIST", "--output", str(self.path)]

    def once(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            if hardnet.cli.main(self.arguments) != 0:
                raise ValueError("the command failed")

    def next_run(self) -> None:
        if self.path.exists():
            self._check()
        self.once()
        self._check()

    def _check(self) -> None:
        if self.path.suffix == ".npz":
            with np.load(self.path) as content:
                if content["embeddings"].shape != (1, 1024):
                    raise ValueError("a file of half the rows")
        else:
            torch.jit.load(str(self.path))

    def leftovers(self) -> list[str]:
        return [path.name for path in self.path.parent.iterdir() if path != self.path]


def in_child(work: Callable[[], object]) -> tuple[int, int]:
    """Fork a process that works; return its number and the end of a pipe from which a byte comes when it begins."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.write(writing, b"!")
            work()
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    return pid, reading


def for_ever(once: Callable[[], None]) -> None:
    while True:
        once()


def kill_one(job: Fetching | Saving | Writing, rng: random.Random) -> tuple[bool, list[str]]:
    """Start, kill, run once more; return whether a temporary file was left, and what was wrong."""
    pid, began = in_child(lambda: for_ever(job.once))
    os.read(began, 1)
    os.close(began)
    time.sleep(rng.uniform(0, job.longest_wait))
    os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    wrong = [] if status == -signal.SIGKILL else [f"the work ended by itself with {status}"]
    left = bool(job.leftovers())
    pid, began = in_child(job.next_run)
    os.close(began)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        wrong.append(f"the next run ended with {status}")
    wrong += [f"left behind: {name}" for name in job.leftovers()]
    return left, wrong


def run_kind(kind: str, url: str, sha256: str, rounds: int, folder: Path) -> dict[str, Any]:
    job: Fetching | Saving | Writing
    if kind in ("extract", "export"):
        job = Writing(kind, folder)
    else:
        job = Saving(folder) if kind == "checkpoint" else Fetching(kind, url, sha256)
    job.next_run()  # everything imported, and something there
    rng = random.Random(kind)  # noqa: S311  moments, not secrets
    outcomes = [kill_one(job, rng) for _ in range(rounds)]
    complaints = [complaint for _, wrong in outcomes for complaint in wrong]
    return {"rounds": len(outcomes), "left": sum(left for left, _ in outcomes), "wrong": complaints}


def main() -> None:
    kinds, url, sha256, rounds, folder = sys.argv[1:]
    torch.set_num_threads(1)
    print(json.dumps({kind: run_kind(kind, url, sha256, int(rounds), Path(folder)) for kind in kinds.split(",")}))


if __name__ == "__main__":
    main()
