"""Work on a disk that fills up: `full_disk.py DISK KINDS FOLDER URL SHA256`; prints a JSON object of what was seen.

DISK is "limit", which makes every file end after so many bytes (RLIMIT_FSIZE), or "tmpfs", which takes FOLDER for a
file system of its own and fills it. KINDS are those of WORK, with commas between them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import hardnet.cli
from hardnet import WeightsError
from hardnet.training import TrainingError
from hardnet.training import checkpoint_file as checkpoints
from hardnet.weights.catalog import Digest, Source, WeightsRecord
from hardnet.weights.download import Policy, cache_dir, fetch

PICTURES = 8
MODEL = ("--model", "hardnet39ds", "--weights", "FASHION_MNIST")
FROM_BEFORE = b"from before"


@dataclasses.dataclass
class Work:
    """What is done, and where it writes."""

    target: Path
    run: Callable[[], str]
    """Does it, and returns what it says when it fails."""
    says: str
    """A pattern of that."""
    rooms: int = 5
    """How many sizes of the disk are tried."""
    replaces: bool = True
    """Whether it replaces what was there before."""


def command(*arguments: object) -> str:
    """Run the command line; return what it says on standard error, with its status in front where that is not 0."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = hardnet.cli.main([str(argument) for argument in arguments])
        except Exception:
            return traceback.format_exc()
    said = re.sub(r"^W\d{4} .*\n", "", err.getvalue(), flags=re.MULTILINE)  # torch's own log
    return (f"{status}: " if status else "") + said


def error_of(kind: type[Exception], call: Callable[[], object]) -> str:
    try:
        call()
    except kind as error:
        return str(error)
    return ""


def works(folder: Path, url: str, sha256: str) -> dict[str, Callable[[], Work]]:
    def download() -> Work:
        source = Source(url, Digest("sha256", sha256), "the tests")
        record = WeightsRecord("hardnet68", "TEST_V1", (source,), "made", 1.0, 1.0, "the tests")
        cache_dir().mkdir(parents=True)
        (cache_dir() / "other.pth").write_bytes(FROM_BEFORE)
        target = cache_dir() / record.cache_filename(source)

        def run() -> str:
            target.unlink(missing_ok=True)
            return error_of(WeightsError, lambda: fetch(record, policy=Policy()))

        said = r"the cache folder \S+ cannot be written: [^\n]+ point TORCH_HOME at another folder"
        return Work(target, run, said, replaces=False)

    def checkpoint() -> Work:
        content = {"format": checkpoints.FORMAT, "optimizer": {}, "model": torch.zeros(100_000)}
        path = folder / "run" / checkpoints.CHECKPOINT
        said = r"the checkpoint \S+ could not be written: [^\n]+; the previous one is untouched"
        return Work(path, lambda: error_of(TrainingError, lambda: checkpoints.save_atomically(content, path)), said)

    def extract(suffix: str) -> Callable[[], Work]:
        def work() -> Work:
            pictures = [folder.parent / f"{number}.png" for number in range(PICTURES)]
            for path in pictures:
                Image.new("RGB", (40, 40), "red").save(path)
            path = folder / f"x{suffix}"
            run = functools.partial(command, "extract", *pictures, "--output", path, *MODEL)
            return Work(path, run, r"2: hardnet: \S+ cannot be written: [^\n]+\n")

        return work

    def export(form: str, suffix: str) -> Callable[[], Work]:
        def work() -> Work:
            path = folder / f"x{suffix}"
            model, *options = MODEL[1:]
            run = functools.partial(command, "export", model, *options, "--format", form, "--output", path)
            return Work(path, run, r"1: hardnet: \S+ cannot be written: [^\n]+\n", rooms=2)

        return work

    return {
        "download": download,
        "checkpoint": checkpoint,
        "npz": extract(".npz"),
        "csv": extract(".csv"),
        "onnx": export("onnx", ".onnx"),
        "openvino": export("openvino", ".xml"),
        "torch-export": export("torch-export", ".pt2"),
        "torchscript": export("torchscript", ".pt"),
        "aoti": export("aoti", ".pt2"),
    }


@contextlib.contextmanager
def limit(folder: Path, room: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def tmpfs(folder: Path, room: int) -> Iterator[None]:
    free = os.statvfs(folder)
    ballast = folder.parent / "ballast"
    with ballast.open("wb") as file:
        left = free.f_bavail * free.f_bsize - room
        while left > 0:
            left -= file.write(bytes(min(left, 1 << 20)))
    try:
        yield
    finally:
        ballast.unlink()


DISKS = {"limit": limit, "tmpfs": tmpfs}


def listing(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def fill(work: Work, folder: Path, disk: Callable[[Path, int], contextlib.AbstractContextManager[None]]) -> list[str]:
    """Do it once with room, then in vain on disks of several sizes, then with room again; return what was wrong."""
    if said := work.run():
        return [f"with room: {said}"]
    size = sum(path.stat().st_size for path in work.target.parent.glob(f"{work.target.stem}.*"))
    if work.replaces:
        work.target.write_bytes(FROM_BEFORE)
    else:
        work.target.unlink()
    before, wrong = listing(folder), []
    for room in (size * number // work.rooms for number in range(work.rooms)):
        with disk(folder, room):
            said = work.run()
        if re.fullmatch(work.says, said) is None:
            wrong.append(f"with room for {room} of {size} bytes: {said!r}")
        if (after := listing(folder)) != before:
            wrong.append(f"with room for {room} of {size} bytes: {before} became {after}")
    if said := work.run():
        wrong.append(f"with room again: {said}")
    if work.target.read_bytes() == FROM_BEFORE:
        wrong.append("with room again: nothing was written")
    return wrong


def main() -> None:
    disk, kinds, place, url, sha256 = sys.argv[1:]
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for kind in kinds.split(","):
        folder = Path(place) / kind
        folder.mkdir()
        os.environ["TORCH_HOME"] = str(folder)
        found[kind] = fill(works(folder, url, sha256)[kind](), folder, DISKS[disk])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
