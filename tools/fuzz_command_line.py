"""The fuzz target that is the command line, and the folder that it runs in."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from PIL import Image

import hardnet.benchmark.cli
import hardnet.benchmark.photographs
import hardnet.classify
import hardnet.cli
import hardnet.demo
import hardnet.deploy.cli
import hardnet.deploy.engines
import hardnet.deploy.exporting

from .fuzz_checks import Choices, require

WORDS = (
    "predict", "extract", "info", "weights", "train", "evaluate", "list", "download", "path", "verify",
    "--model", "--weights", "--topk", "--batch-size", "--device", "--labels", "--format", "--output", "--size",
    "--verbose", "--help", "--version", "--epochs", "--split", "--threads", "--expect", "--resume", "--workers",
    "--", "-v", "-", "", "=", "hardnet39ds", "hardnet68", "FASHION_MNIST", "IMAGENET1K_V1", "table", "json", "csv",
    "auto", "cpu", "cuda", "meta", "cpu:7", "1", "0", "-1", "224", "32x64", "9999999999999999999", "1e400", "nan",
    "good.png", "bad.png", "folder", "empty", "missing.png", "labels.txt", "bad.pth", "out.npz", "out.csv", "http://x/",
    # New words go to the end, so that the inputs that were found keep their meaning.
    "export", "benchmark", "demo", "--engine", "--precision", "--calibration", "--uint8-input", "--engines",
    "--precisions", "--batch-sizes", "--sizes", "--rounds", "--turn-seconds", "--peers", "--no-peers", "--peer-engines",
    "--photographs", "--json", "--plot", "--end-to-end", "--images", "--host", "--port", "eager", "torch", "inductor",
    "aoti", "onnxruntime", "openvino", "onnx", "torch-export", "torchscript", "fp32", "bf16", "int8", "compile",
    "x.onnx", "x.pt", "x.pt2", "x.xml", "0.5", "999999", "127.0.0.1", "70000", "::1",
)  # fmt: skip


class Cut(BaseException):
    """The arguments have been taken, and what would come now is long or heavy."""


def cli(data: bytes) -> None:
    """The command line: any list of arguments ends with a status of ours and without a traceback."""
    choices = Choices(data)
    arguments = []
    while choices.left and len(arguments) < 12:
        word = WORDS[number] if (number := choices.number(len(WORDS) + 16)) < len(WORDS) else choices.text()
        # Nothing outside of the sandbox may be named, so that nothing there can be written.
        arguments.append(word if word == "http://x/" else word.replace("/", "_"))
    folder = _sandbox()
    out, err = io.StringIO(), io.StringIO()
    with _inside(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _nothing_started():
        try:
            status = hardnet.cli.main(arguments)
        except SystemExit as stop:
            require(stop.code in (0, 2), stop.code)
            return
        except Cut:
            status = 0
    require(status in (0, 1, 2, 3), status)
    said = err.getvalue()
    require("Traceback" not in said, said)
    require(status == 0 or said.strip() or out.getvalue().strip(), f"status {status} without a word: {arguments}")
    if status == 0 and arguments[0] == "predict" and "json" in arguments and out.getvalue().startswith("["):
        json.loads(out.getvalue())
    for name in (".npz", ".csv"):
        for path in folder.glob(f"*{name}"):
            path.unlink()
    left = sorted(path.name for path in folder.iterdir() if path.name not in _SANDBOX)
    require(not left, f"left behind: {left}")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


_SANDBOX = {"good.png", "bad.png", "folder", "empty", "labels.txt", "bad.pth", "torch_home"}


@functools.cache
def _sandbox() -> Path:
    """Make a folder to run commands in, cut off from network and cache, and let models be built once."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-cli-"))
    Image.new("RGB", (40, 40), "red").save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "folder").mkdir()
    (folder / "empty").mkdir()
    Image.new("L", (33, 64), 99).save(folder / "folder" / "a.png")
    (folder / "folder" / "b.jpg").write_bytes(b"")
    (folder / "labels.txt").write_text("\n".join("abcdefghij"))
    (folder / "bad.pth").write_bytes(b"\x80\x02}.")
    os.environ["HARDNET_OFFLINE"] = "1"
    os.environ["TORCH_HOME"] = str(folder / "torch_home")
    build = functools.cache(hardnet.classify.create_model)
    hardnet.classify.create_model = hardnet.deploy.cli.create_model = build  # type: ignore[assignment]
    _cut_short()
    sys.addaudithook(_on_event)
    return folder


def _cut(*_: object, **__: object) -> NoReturn:
    raise Cut


def _cut_short() -> None:
    """Let no model be converted or measured and no server start; the checks of the arguments come before."""
    hardnet.deploy.exporting.fold = _cut
    for engine in hardnet.deploy.engines._BUILDERS.keys() - {"eager"}:
        hardnet.deploy.engines._BUILDERS[engine] = _cut
    hardnet.benchmark.cli.measure = _cut
    hardnet.benchmark.photographs.write_jpegs = _cut
    hardnet.demo._listen = _cut


_STARTED = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system")
_NETWORK = ("socket.bind", "socket.connect", "socket.getaddrinfo")
_running = False


def _on_event(event: str, arguments: tuple[object, ...]) -> None:
    if _running and (event in _STARTED or event in _NETWORK):
        print(event, arguments, file=sys.__stderr__)
        traceback.print_stack(file=sys.__stderr__)
        os.abort()  # an exception could be taken for one of the library's own


@contextlib.contextmanager
def _nothing_started() -> Iterator[None]:
    """End the process where another one is started, or the network used, meanwhile."""
    global _running
    _running = True
    try:
        yield
    finally:
        _running = False
