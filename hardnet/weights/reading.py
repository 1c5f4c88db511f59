"""Reading files from strangers: no code is run, and memory and time are bounded by the file's size.

torch's restricted reader (``weights_only=True``) keeps code out. What it lets in and is refused here: archives that
unpack to far more than they weigh or that readers take for different ones, what
:mod:`hardnet.weights.pickles` finds in the pickle, and tensors that are larger than the file.
"""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import WeightsError
from ..utils.files import expand_user, open_regular
from ..utils.text import printable
from .pickles import find_storages

MAX_UNPACKED = 512 * 1024 * 1024
"""Bytes that a compressed archive may unpack to; torch itself stores without compression."""
MAX_VALUES = 10_000_000
"""In lists and dicts, each as often as it is referred to."""

_FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_INTEGERS = frozenset((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool))
_MOST_DIMENSIONS = 8  # weights have four; torch does not compute with more than 64

_ZIP = b"PK\x03\x04"
_PICKLE = "data.pkl"
_LEGACY_PICKLES = 5  # magic number, protocol, system, content, keys of the storages; then come the storages


def read_file(path: str | Path) -> bytes:
    """Return a local checkpoint's bytes.

    Raises:
        WeightsError: there is no such file, or it cannot be read.
    """
    try:
        with open_regular(expand_user(path)) as file:
            return file.read()
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
            from safetensors import torch as safetensors
        except ModuleNotFoundError as error:
            raise ImportError(f'{origin}: reading it takes pip install "hardnet[safetensors]"') from error
        try:
            return safetensors.load(content)
        except Exception as error:  # beside its own: of types that torch does not have, of shapes that it cannot have
            raise WeightsError(f"{origin} is not a readable safetensors file: {_reason(error)}") from error
    return read_pickled(content, origin)


def read_pickled(content: bytes, origin: str) -> Any:
    """Return what ``torch.save`` wrote, tensors on the CPU.

    Raises:
        WeightsError: it is damaged, not torch's, or would do more than hold tensors; the message starts with
            ``origin``.
    """
    try:
        room = _check(content)
        return _Plain(room).copy(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:  # damaged or hostile bytes make the reader raise nearly anything
        raise WeightsError(
            f"{origin} cannot be read as a checkpoint of tensors ({_reason(error)}). If it is a training checkpoint "
            "that holds other Python objects, save the state dict alone: torch.save(model.state_dict(), path)"
        ) from error


def odd_kind(value: Tensor) -> str | None:
    """Say what keeps a tensor from being a plain array of numbers that takes no more room than its file; or None."""
    if value.is_meta:
        return "without values"
    if value.layout is not torch.strided or value.is_nested:
        return str(value.layout).removeprefix("torch.")
    if value.dtype not in _FLOATS | _INTEGERS:
        return str(value.dtype).removeprefix("torch.")
    if value.dim() > _MOST_DIMENSIONS:
        return f"of {value.dim()} dimensions"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"{tuple(value.shape)}, expanded from fewer values"
    return None


def _reason(error: Exception) -> str:
    return printable(str(error).strip().split("\n")[0][:200]) or type(error).__name__


def _check(content: bytes) -> int:
    """Look through a file before torch reads it; return how many bytes its tensors can have.

    Raises:
        Exception: nearly anything, as the bytes are damaged or not to be read.
    """
    if not content.startswith(_ZIP):
        stream = io.BytesIO(content)
        for _ in range(_LEGACY_PICKLES):
            if stream.tell() < len(content):
                find_storages(stream)
        return len(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        # Torch's reader does not tell upper from lower case.
        sizes = {member.orig_filename.lower(): member.file_size for member in members}
        total = sum(member.file_size for member in members)
        if total > max(len(content), MAX_UNPACKED):
            raise ValueError(f"{len(content)} bytes that unpack to {total}")
        if len(sizes) != len(members):
            raise ValueError("it holds two records of one name")
        if not _is_plain(content, archive):
            raise ValueError("an archive of which readers may see different members")
        for member in members:
            name = member.orig_filename.lower()
            if name.endswith(_PICKLE):
                for key, size in find_storages(io.BytesIO(archive.read(member))).items():
                    if size > sizes[f"{name.removesuffix(_PICKLE)}data/{key}".lower()]:
                        raise ValueError(f"the storage {key} is larger than its record")
    return total


def _is_plain(content: bytes, archive: zipfile.ZipFile) -> bool:
    """Whether torch's reader of archives finds the members that Python's does: they look for them in other ways.

    So there is one directory, right in front of the end, nothing in front of the archive, and no size told twice.
    """
    end = len(content) - 22
    signature, size, start, comment = struct.unpack_from("<4s8xIIH", content, end)
    if signature != b"PK\x05\x06" or comment:
        return False
    if content[end - 20 : end - 16] == b"PK\x06\x07":  # where the 64-bit record is
        (where,) = struct.unpack_from("<Q", content, end - 12)
        end -= 76
        signature, size, start = struct.unpack_from("<4s36xQQ", content, end)
        if where != end or signature != b"PK\x06\x06":
            return False
    if start + size != end or archive.start_dir != start:
        return False
    members = archive.infolist()
    return all(member.orig_filename.isprintable() and not _has_other_size(member.extra) for member in members)


def _has_other_size(extra: bytes) -> bool:
    """Whether there is a field of 64-bit sizes, which no file here needs."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            return True
        extra = extra[4 + length :]
    return False


class _Plain:
    """Copies what a file held into plain dicts, lists and tensors: the file's own may have attributes from the file."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._storages: dict[int, int] = {}
        self._copies: dict[int, tuple[Any, int]] = {}

    def copy(self, value: Any) -> Any:
        """Return the copy.

        Raises:
            ValueError: the tensors have more bytes than there is room, or the lists and dicts too many values.
        """
        return self._copied(value)[0]

    def _copied(self, value: Any) -> tuple[Any, int]:
        """Return the copy, and the number of values in it."""
        if not isinstance(value, (Tensor, dict, list, tuple)):
            return value, 1
        if id(value) not in self._copies:
            self._copies[id(value)] = None, MAX_VALUES + 1  # for what contains itself
            self._copies[id(value)] = self._new(value)
        return self._copies[id(value)]

    def _new(self, value: Any) -> tuple[Any, int]:
        if isinstance(value, Tensor):
            tensor = Tensor.detach(value)
            self._count(tensor)
            return tensor, 1
        made: Any
        if isinstance(value, dict):
            pairs = [(key, *self._copied(entry)) for key, entry in dict.items(value)]
            made, size = {key: entry for key, entry, _ in pairs}, 1 + sum(size for *_, size in pairs)
        elif type(value) in (list, tuple):
            entries = [self._copied(entry) for entry in value]
            made, size = type(value)(entry for entry, _ in entries), 1 + sum(size for _, size in entries)
        else:  # torch.Size
            return value, 1
        if size > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values, or a list or dict that contains itself")
        return made, size

    def _count(self, tensor: Tensor) -> None:
        if tensor.is_meta or tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        self._room -= storage.nbytes() - self._storages.get(storage.data_ptr(), 0)
        self._storages[storage.data_ptr()] = storage.nbytes()
        if self._room < 0:
            raise ValueError("tensors that are larger than the file")
