"""Reading files from strangers: no code is run, and memory and time are bounded by the file's size.

torch's restricted reader (``weights_only=True``) keeps code out. What it lets in and is refused here: archives that
unpack to far more than they weigh, tuples nested so deeply that hashing one ends the process, and more than one record
of a name.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import WeightsError

MAX_UNPACKED = 512 * 1024 * 1024
"""Bytes that a compressed archive may unpack to; torch itself stores without compression."""
MAX_NESTING = 100
"""Tuples within tuples; checkpoints have three or four."""

_FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_INTEGERS = frozenset((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool))

_ZIP = b"PK\x03\x04"
_TUPLES = (b"t", b"\x85", b"\x86", b"\x87")
_HARMLESS = 5000  # tuples: even one in the other, they fit any stack
_LEGACY_PICKLES = 5  # magic number, protocol, system, content, keys of the storages; then come the storages


def read_file(path: str | Path) -> bytes:
    """Return a local checkpoint's bytes.

    Raises:
        WeightsError: there is no such file, or it cannot be read.
    """
    try:
        return Path(path).expanduser().read_bytes()
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error


def deserialise(content: bytes, origin: str) -> Any:
    """Return what a file of torch's format holds, or of safetensors' where ``origin`` ends in ``.safetensors``.

    Raises:
        WeightsError: the bytes are something else; the message starts with ``origin``.
        ImportError: it is a safetensors file and the package is not installed.
    """
    if content[:512].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{origin} is an HTML page, not a checkpoint")
    if origin.endswith(".safetensors"):
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load
        except ModuleNotFoundError as error:
            raise ImportError(f'{origin}: reading it takes pip install "hardnet[safetensors]"') from error
        try:
            return load(content)
        except SafetensorError as error:
            raise WeightsError(f"{origin} is not a readable safetensors file: {error}") from error
    return read_pickled(content, origin)


def read_pickled(content: bytes, origin: str) -> Any:
    """Return what ``torch.save`` wrote, tensors on the CPU.

    Raises:
        WeightsError: it is damaged, not torch's, or would do more than hold tensors; the message starts with
            ``origin``.
    """
    try:
        _check(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or hostile bytes make the reader raise nearly anything
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        reason = reason.encode("utf-8", "backslashreplace").decode()
        raise WeightsError(
            f"{origin} cannot be read as a checkpoint of tensors ({reason}). If it is a training checkpoint that "
            "holds other Python objects, save the state dict alone: torch.save(model.state_dict(), path)"
        ) from error


def odd_kind(value: Tensor) -> str | None:
    """Say what keeps a tensor from being a plain array of numbers that takes no more room than its file; or None."""
    if value.is_meta:
        return "without values"
    if value.layout is not torch.strided or value.is_nested:
        return str(value.layout).removeprefix("torch.")
    if value.dtype not in _FLOATS | _INTEGERS:
        return str(value.dtype).removeprefix("torch.")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"{tuple(value.shape)}, expanded from fewer values"
    return None


def _check(content: bytes) -> None:
    if not content.startswith(_ZIP):
        stream = io.BytesIO(content)
        for _ in range(_LEGACY_PICKLES):
            if stream.tell() < len(content):
                _check_nesting(stream)
        return
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        size = sum(member.file_size for member in archive.infolist())
        if size > max(len(content), MAX_UNPACKED):
            raise ValueError(f"{len(content)} bytes that unpack to {size}")
        if len(set(names)) != len(names):
            raise ValueError("it holds two records of one name")
        for name in names:
            if name.endswith(".pkl"):
                pickled = archive.read(name)
                if sum(map(pickled.count, _TUPLES)) > _HARMLESS:  # counted first, since it is so much faster
                    _check_nesting(io.BytesIO(pickled))


def _check_nesting(stream: io.BytesIO) -> None:
    """Follow one pickle's stack without building anything, as numbers: how deep a tuple each entry is."""
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[object, int] = {}
    for code, argument, _ in pickletools.genops(stream):
        name = code.name
        if name == "MARK":
            marks.append(len(stack))
        elif name.startswith("TUPLE"):
            start = marks.pop() if name == "TUPLE" else len(stack) - int(name[-1])
            depth = 1 + max(stack[start:], default=0)
            if depth > MAX_NESTING:
                raise ValueError(f"tuples nested more than {MAX_NESTING} deep")
            stack[start:] = [depth]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "REDUCE":
            stack[-2:] = [max(stack[-2:])]
        else:
            _step(code, stack, marks)


def _step(code: pickletools.OpcodeInfo, stack: list[int], marks: list[int]) -> None:
    """Take from the stack and put there what this instruction does."""
    before = code.stack_before
    if pickletools.stackslice in before:
        del stack[marks.pop() :]
        taken = before.index(pickletools.markobject)
    else:
        taken = len(before)
    if taken > len(stack):
        raise ValueError(f"the pickle takes {taken} of {len(stack)} values")
    del stack[len(stack) - taken :]
    stack.extend([0] * len(code.stack_after))
