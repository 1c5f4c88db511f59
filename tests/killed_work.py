"""Work to be killed at any moment, and the check of what the next run finds: `killed_work.py KINDS URL SHA256 N DIR`.

KINDS are download, verify, replace or checkpoint, with commas between them. Prints a JSON object that says of each kind
how many rounds there were, in how many of them the killed process left a temporary file, and every complaint.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hardnet.catalog import Digest, Source, WeightsRecord
from hardnet.download import Policy, cache_dir, fetch
from hardnet.training import checkpoints

LONGEST_WAIT = 0.15
"""Seconds until the kill, at most; the work goes round several times in it."""


class Fetching:
    """Fetches a record again and again: from the server, from the cache, or in place of a damaged file."""

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


def kill_one(job: Fetching | Saving, rng: random.Random) -> tuple[bool, list[str]]:
    """Start, kill, run once more; return whether a temporary file was left, and what was wrong."""
    pid, began = in_child(lambda: for_ever(job.once))
    os.read(began, 1)
    os.close(began)
    time.sleep(rng.uniform(0, LONGEST_WAIT))
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
