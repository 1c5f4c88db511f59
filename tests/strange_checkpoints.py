"""Files that no one should load: pickles that would run code, by the forms in which they are known to come."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Iterator

import pytest
import torch

from hardnet import HarDNet, WeightsError
from hardnet.models.config import HarDNetConfig
from hardnet.weights.checkpoint import load_state, parse_checkpoint

TINY = HarDNetConfig(
    name="tiny", stem_channels=(2, 2), block_layers=(2,), growth_rates=(2,), growth_multiplier=1.5,
    transition_channels=(4,), downsample=(False,), depthwise=True, drop_rate=0.0,
)  # fmt: skip

CALLS: tuple[tuple[str, str, tuple[object, ...]], ...] = (
    ("os", "system", ("true",)),
    ("posix", "system", ("true",)),
    ("nt", "system", ("rem",)),
    ("os", "popen", ("true",)),
    ("os", "execl", ("/bin/true", "true")),
    ("subprocess", "call", (["true"],)),
    ("subprocess", "Popen", (["true"],)),
    ("subprocess", "check_output", (["true"],)),
    ("pty", "spawn", ("true",)),
    ("builtins", "eval", ("1",)),
    ("builtins", "exec", ("pass",)),
    ("__builtin__", "eval", ("1",)),
    ("builtins", "compile", ("pass", "x", "exec")),
    ("builtins", "getattr", ("x", "join")),
    ("builtins", "__import__", ("os",)),
    ("builtins", "open", ("trace", "w")),
    ("importlib", "import_module", ("os",)),
    ("runpy", "run_path", ("trace.py",)),
    ("runpy", "_run_code", ("pass", {})),
    ("code", "interact", ()),
    ("shutil", "rmtree", ("trace",)),
    ("webbrowser", "open", ("http://127.0.0.1:9/",)),
    ("urllib.request", "urlopen", ("http://127.0.0.1:9/",)),
    ("socket", "create_connection", (("127.0.0.1", 9),)),
    ("ctypes", "CDLL", ("libc.so.6",)),
    ("pickle", "loads", (b"N.",)),
    ("marshal", "loads", (b"N",)),
    ("types", "FunctionType", ()),
    ("functools", "partial", (1,)),
    ("operator", "attrgetter", ("x",)),
    ("timeit", "timeit", ("pass",)),
    ("cProfile", "run", ("pass",)),
    ("pdb", "run", ("pass",)),
    ("pydoc", "locate", ("os",)),
    ("asyncio", "run", (1,)),
    ("multiprocessing.util", "spawnv_passfds", (b"/bin/true", [], [])),
    ("torch", "load", ("trace",)),
    ("torch.hub", "load", ("trace", "x")),
    ("torch.serialization", "load", ("trace",)),
    ("torch.jit", "load", ("trace",)),
    ("torch.utils.cpp_extension", "load", ("x", ["x.cpp"])),
    ("torch.ops", "load_library", ("x.so",)),
    ("torch.storage", "_load_from_bytes", (b"N.",)),
    ("numpy.core.multiarray", "_reconstruct", ()),
    ("numpy", "load", ("trace",)),
    ("hardnet.weights.reading", "read_file", ("trace",)),
)
"""Module, function and arguments."""


def saved(content: object, new: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def load(model: HarDNet, content: bytes, origin: str = "x.pth") -> None:
    load_state(model, parse_checkpoint(content, origin, TINY), origin)


def refuse(model: HarDNet, content: bytes, match: str | None = None, origin: str = "x.pth") -> None:
    """The file is refused in one error that names it, and the model stays what it was, to the last bit."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=match) as caught:
        load(model, content, origin)
    assert str(caught.value).startswith(origin)
    assert len(str(caught.value)) < 3000
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def call(module: str, name: str, arguments: tuple[object, ...]) -> list[bytes]:
    """The ways in which a pickle says "call this": REDUCE, INST, OBJ, NEWOBJ, STACK_GLOBAL, and in BUILD."""
    pickled = pickle.dumps(arguments, 2)[2:-1]
    parts = b"".join(pickle.dumps(argument, 2)[2:-1] for argument in arguments)
    found, text = f"c{module}\n{name}\n".encode(), f"{module}\n{name}\n".encode()
    short = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
    return [
        b"\x80\x02" + found + pickled + b"R.",
        b"\x80\x02(" + parts + b"i" + text + b".",
        b"\x80\x02(" + found + parts + b"o.",
        b"\x80\x02" + found + pickled + b"\x81.",
        b"\x80\x04" + short + b"\x93" + pickled + b"R.",
        b"\x80\x02}" + b"X\x05\x00\x00\x00state" + found + pickled + b"Rs.",
        b"\x80\x02ccollections\nOrderedDict\n)R" + found + pickled + b"Rb.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n(" + found + pickled + b"R\x89NtR.",
    ]


def legacy(pickled: bytes) -> bytes:
    """A file of torch's older format around a pickle."""
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    start = buffer.getvalue()
    stream = io.BytesIO(start)
    for _ in range(3):  # the magic number, the protocol and the system's properties
        pickle.load(stream)  # noqa: S301  our own, from three lines above
    return start[: stream.tell()] + pickled + pickle.dumps([], 2)


def zipped(pickled: bytes, *, method: int = zipfile.ZIP_STORED, storage: bytes = bytes(64)) -> bytes:
    """A file of torch's newer format around a pickle and one storage."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in (
            ("data.pkl", pickled),
            ("byteorder", b"little"),
            ("data/0", storage),
            ("version", b"3\n"),
        ):
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


_events: list[str] | None = None
_HARMFUL = {
    "compile", "exec", "import", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "shutil.rmtree",
    "subprocess.Popen", "socket.connect", "socket.getaddrinfo", "ctypes.dlopen", "pty.spawn", "webbrowser.open",
    "urllib.Request", "marshal.loads", "code.__new__", "function.__new__",
}  # fmt: skip


def _on_event(event: str, arguments: tuple[object, ...]) -> None:
    if _events is None or not (event in _HARMFUL or event == "open"):
        return
    if event == "import" and str(arguments[0]).split(".")[0] in _READERS_OWN:
        return
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return  # what belongs to an import of the reader's own; the import itself has been judged above
        frame = frame.f_back  # type: ignore[assignment]
    _events.append(f"{event} {arguments!r}"[:200])


_READERS_OWN = ("torch", "encodings")
"""Packages of which torch's reader imports parts when it needs them."""
_hooked = False


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """List what happens in this process meanwhile that reading a file must not bring about."""
    global _events, _hooked
    if not _hooked:
        sys.addaudithook(_on_event)
        _hooked = True
    _events = happened = []
    try:
        yield happened
    finally:
        _events = None


def selftest() -> list[str]:
    """What the watch sees of a harmless pickle when it is read without precautions."""
    with watched() as happened:
        pickle.loads(call("os", "system", ("true" if os.name == "posix" else "rem",))[0])  # noqa: S301  its purpose
    return happened
