"""What is fuzzed: five functions of bytes, each of which raises where the library breaks a promise.

Needs no fuzzer: :mod:`tools.fuzz` drives them with atheris, and the tests with the inputs that it found.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import sys
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import hardnet.classify
import hardnet.cli
from hardnet import HarDNet, WeightsError
from hardnet.catalog import CATALOG, Digest, Source
from hardnet.checkpoint import find_state, imgclsmob_key, load_state, parse_checkpoint
from hardnet.config import HarDNetConfig
from hardnet.download import Policy, _unpacked, identify
from hardnet.download.archive import ArchiveError, unpack_archive
from hardnet.download.connection import TransferError
from hardnet.errors import ImageError
from hardnet.images import load_image

from .fuzz_checks import Choices, check_message, require
from .fuzz_command_line import cli

TINY = HarDNetConfig(
    name="tiny",
    stem_channels=(2, 2),
    block_layers=(2,),
    growth_rates=(2,),
    growth_multiplier=1.5,
    transition_channels=(4,),
    downsample=(False,),
    depthwise=True,
    drop_rate=0.0,
)
"""A network of some hundred parameters, so that an input costs microseconds."""

GOOD = b"PK\x03\x04" + hashlib.sha256(b"weights").digest() * 4
"""The one file that the digest of the archive target is of."""
_MAX_BYTES = 1 << 20
_MAX_PIXELS = 1 << 20


def archive(data: bytes) -> None:
    """The digest and archive reader: bounded, and nothing but the right file passes."""
    try:
        require(len(unpack_archive(data, max_bytes=_MAX_BYTES)) <= _MAX_BYTES, "an archive outgrew the limit")
    except ArchiveError as error:
        check_message(error)
    require(identify(data, CATALOG.values()) is None, "the digest of a checkpoint, found")
    digest = Digest("sha256", hashlib.sha256(GOOD).hexdigest())
    for name in ("w.pth", "w.pth.zip"):
        source = Source(f"https://host.invalid/{name}", digest, "nobody")
        try:
            content = _unpacked(data, source, Policy(max_bytes=_MAX_BYTES))
        except (ArchiveError, TransferError) as error:
            check_message(error)
        else:
            require(content == GOOD, "another file passed for the right one")


@functools.cache
def tiny_model() -> HarDNet:
    """The model that the key and checkpoint targets load into."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return HarDNet(TINY, num_classes=2)


@functools.cache
def tiny_state() -> dict[str, Tensor]:
    """A state dict that fits it."""
    return {key: value.clone() for key, value in tiny_model().state_dict().items()}


def keys(data: bytes) -> None:
    """The key converter and the unwrapper: a state dict edited by the bytes fits, or is refused without a trace."""
    choices = Choices(data)
    state: dict[object, object] = dict(tiny_state())
    if choices.number(2):
        state = {imgclsmob_key(str(key), TINY): value for key, value in state.items()}
    for _ in range(16):
        if not choices.left:
            break
        _edit(state, choices)
    loaded: object = state
    for _ in range(choices.number(3)):
        loaded = _wrap(loaded, choices)
    _load_or_refuse(lambda: find_state(loaded, "x.pth", TINY))


def _edit(state: dict[object, object], choices: Choices) -> None:
    names = list(state)
    key = names[choices.number(len(names))] if names else "nothing"
    value = state.get(key)
    match choices.number(9):
        case 0:
            state.pop(key, None)
        case 1:
            state[str(key) + choices.text()] = state.pop(key, None)
        case 2:
            state[choices.text()] = value
        case 3:
            state[choices.number(256)] = value
        case 4:
            state[key] = (None, 1, "x", [], {}, tiny_state(), float("nan"), torch.Size([2]))[choices.number(8)]
        case 5:
            shapes = ((), (0,), (1,), (2, 3), (2, 3, 3, 3), (2, 1, 1, 1), (3, 4), (5,))
            state[key] = torch.zeros(shapes[choices.number(8)])
        case 6 if isinstance(value, Tensor):
            kinds = (torch.float16, torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64)
            state[key] = value.to(kinds[choices.number(6)])
        case 7 if isinstance(value, Tensor) and value.is_floating_point():
            state[key] = torch.full(value.shape, (float("nan"), float("inf"), -float("inf"))[choices.number(3)])
        case 8:
            kinds = (value, torch.zeros(2, device="meta"), torch.eye(2).to_sparse(), torch.nn.Parameter(torch.ones(2)))
            state[key] = kinds[choices.number(4)]


def _wrap(loaded: object, choices: Choices) -> object:
    match choices.number(6):
        case 0:
            return {"state_dict": loaded}
        case 1:
            return {"model": loaded, "epoch": 1}
        case 2:
            return {choices.text(): loaded, "model": choices.text()}
        case 3 if isinstance(loaded, dict):
            prefix = ("module.", "_orig_mod.", "features.", choices.text())[choices.number(4)]
            return {f"{prefix}{key}": value for key, value in loaded.items()}
        case 4:
            return [loaded]
    return loaded


def checkpoint(data: bytes) -> None:
    """The reader of checkpoints: the first byte says how the rest is presented to it."""
    form, rest = data[:1], data[1:]
    if form == b"s":
        origin, content = "x.safetensors", rest
    elif form == b"p":  # a pickle in an archive whose checksums are right, as no mutation would leave them
        origin, content = "x.pth", _torch_archive(rest)
    else:
        origin, content = "x.pth", rest
    with _watched():
        _load_or_refuse(lambda: parse_checkpoint(content, origin, TINY))


def _torch_archive(pickle: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        written.writestr("archive/data.pkl", pickle)
        written.writestr("archive/byteorder", b"little")
        written.writestr("archive/data/0", bytes(64))
        written.writestr("archive/data/1", bytes(8))
        written.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def _load_or_refuse(read: Callable[[], dict[str, Tensor]]) -> None:
    model, before = tiny_model(), tiny_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of old storages
        try:
            state = read()
            load_state(model, state, "x.pth")
        except WeightsError as error:
            check_message(error)
            for key, value in model.state_dict().items():
                require(torch.equal(value, before[key]), f"a refused file changed {key}")
        else:
            for key, value in model.state_dict().items():
                require(value.isfinite().all(), f"{key} is not finite")
            model.load_state_dict(before)


_watching = False
_HARMFUL = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen")


def _on_event(event: str, arguments: tuple[object, ...]) -> None:
    if not _watching:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wxa+")
    if writes or event in _HARMFUL or event in ("os.remove", "os.rename", "os.mkdir", "shutil.rmtree"):
        traceback.print_stack()
        os.abort()  # an exception would be taken for one of the reader's own


@functools.cache
def _install_watch() -> None:
    # What is imported or built on first use may be compiled to files, or look for programs.
    _load_or_refuse(lambda: parse_checkpoint(b"", "x.pth", TINY))
    _load_or_refuse(lambda: parse_checkpoint(_torch_archive(b"}."), "x.pth", TINY))
    _load_or_refuse(lambda: parse_checkpoint(b"", "x.safetensors", TINY))
    _load_or_refuse(lambda: {"other": torch.zeros(1)})
    sys.addaudithook(_on_event)


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """End the process where a program is started, a connection made or a file written meanwhile."""
    global _watching
    _install_watch()
    _watching = True
    try:
        yield
    finally:
        _watching = False


def image(data: bytes) -> None:
    """The way from a file to the model's input: a picture of the right shape, or one line that says why not."""
    transform = hardnet.get_weights("hardnet39ds", "FASHION_MNIST").transforms()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of some kinds of damage
        try:
            picture = load_image(io.BytesIO(data), max_pixels=_MAX_PIXELS)
        except ImageError as error:
            check_message(error, lines=1)
            return
    require(picture.mode == "RGB", picture.mode)
    require(0 < picture.width * picture.height <= _MAX_PIXELS, picture.size)
    tensor = transform(picture)
    require(tensor.shape == (3, 64, 64), tensor.shape)
    require(tensor.isfinite().all(), "the input is not finite")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "archive": archive,
    "keys": keys,
    "checkpoint": checkpoint,
    "image": image,
    "cli": cli,
}
