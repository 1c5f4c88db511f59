"""Read checkpoint files: bytes -> state dict or training checkpoint, without running code from the file.

``torch.load(weights_only=True)`` admits tensors, plain containers, NumPy's float64 numbers and ``argparse.Namespace``,
which timm's training script stores. A hostile pickle can still exhaust memory or time; safetensors files cannot.
"""

import argparse
import io
import re
import threading
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..utils.errors import WeightsError
from ..utils.files import expand_user, open_regular
from ..utils.optional import require
from ..utils.text import printable, reason

MAX_BYTES = 512 * 1024 * 1024
"""Size limit of a download, and of what a release archive unpacks to."""

_EXPORTED = {".onnx": "an ONNX file", ".xml": "an OpenVINO file", ".pt2": "a file of torch.export"}
_MAX_REASON = 1000  # characters
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*m")
_allowing = threading.Lock()  # torch's list of allowed classes belongs to the process


def read_file(path: str | Path) -> bytes:
    """Return a local file's bytes; a WeightsError says why it cannot be read."""
    try:
        with open_regular(expand_user(path)) as file:
            return file.read()
    except FileNotFoundError as error:
        raise WeightsError("no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise WeightsError(f"cannot be read: {reason(error)}") from error


def deserialise(content: bytes, filename: str) -> Any:
    """Return the content of a file: safetensors by its name, else torch's format.

    A WeightsError says what is wrong with the bytes.
    """
    exported = _EXPORTED.get(Path(filename).suffix.lower())
    if exported is not None:
        raise WeightsError(f"is {exported}, not a checkpoint: give the weights from which it was exported")
    if content[:512].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError("is an HTML page, not a checkpoint")
    if not filename.endswith(".safetensors"):
        return read_pickled(content)
    require("safetensors", "0.4.3")
    from safetensors.torch import load

    try:
        return load(content)
    except Exception as error:  # also of types that torch does not have, and of impossible shapes
        raise WeightsError(f"is not a readable safetensors file: {reason(error)}") from error


def read_pickled(content: bytes) -> Any:
    """Return what ``torch.save`` wrote, tensors on the CPU; a WeightsError says why it is refused."""
    try:
        numbers = _numpy_numbers() if b"multiarray" in content else []
        with _allowing, torch.serialization.safe_globals([argparse.Namespace, *numbers]):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the readers raise nearly anything
        raise WeightsError(
            f"cannot be read as a checkpoint of tensors ({_refusal(error)}). If it is a training checkpoint "
            "that holds other Python objects, save the state dict alone: torch.save(model.state_dict(), path)"
        ) from error


def _numpy_numbers() -> list[Any]:
    """Return what NumPy's float64 numbers, which training scripts store as scores, are read with."""
    import numpy as np

    scalar = np.float64().__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # in files of NumPy 1 and 2
    return [np.dtype, type(np.dtype("f8")), *((scalar, name) for name in names)]


def unpack_archive(archive: bytes) -> bytes:
    """Return the content of the single ``.pth`` file in a ``.zip``; nothing is written to disk.

    Raises:
        WeightsError: the archive is damaged, has another content, or unpacks to more than 512 MiB.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            names = opened.namelist()
            if len(names) != 1 or not names[0].endswith(".pth"):
                raise ValueError(f"it has {len(names)} members ({', '.join(map(repr, names[:3]))})")
            with opened.open(names[0]) as file:
                content = file.read(MAX_BYTES + 1)
    except Exception as error:  # damaged bytes make zipfile raise nearly anything
        raise WeightsError(f"not a readable archive of one .pth file: {reason(error)[:_MAX_REASON]}") from error
    if len(content) > MAX_BYTES:
        raise WeightsError(f"the file in the archive is larger than {MAX_BYTES} bytes")
    return content


def _refusal(error: Exception) -> str:
    """Return in one line what torch's restricted reader refused."""
    text = _TERMINAL_CODE.sub("", str(error))
    text = text.rpartition("WeightsUnpickler error:")[2].partition("Check the documentation of torch.load")[0]
    return printable(" ".join(text.split())[:_MAX_REASON]) or type(error).__name__
