"""Keep converted models: one folder per model, weights, engine and versions in torch.hub's directory."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.hub
from torch import Tensor

from ..models.network import ImageModule
from ..utils.files import scratch_folder
from ..utils.version import __version__

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def artifacts_dir() -> Path:
    """Return the folder of the converted models: ``hardnet-engines`` in torch.hub's directory (see ``TORCH_HOME``)."""
    return Path(torch.hub.get_dir()) / "hardnet-engines"


def fingerprint(model: ImageModule, engine: str, *conditions: object, data: Iterable[Tensor] = ()) -> str:
    """Return a name that depends on structure, weights, calibration data, engine, conditions and versions."""
    digest = hashlib.sha256(repr((__version__, torch.__version__, engine, conditions, str(model))).encode())
    digest.update(repr(model.config).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes_of(value))
    for value in data:
        digest.update(repr(tuple(value.shape)).encode())
        digest.update(_bytes_of(value))
    return f"{model.config.name}-{engine}-{digest.hexdigest()[:32]}"


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def from_artifact(key: str, build: Callable[[Path], None], use: Callable[[Path], Result]) -> Result:
    """Return ``use(folder)`` for the folder of a conversion; call ``build(folder)`` first if it does not exist.

    The folder is renamed to its final name when it is complete, so parallel conversions do not disturb each other and
    an interrupted one leaves nothing behind. A damaged conversion is made again. Where nothing can be written, a
    temporary folder is used, with a warning in the log.
    """
    home = artifacts_dir()
    kept = home / key
    if kept.is_dir():
        try:
            return use(kept)
        except Exception as error:  # any error of an engine that reads a damaged file
            logger.warning("the converted model in %s cannot be used (%s); converting again", kept, error)
            shutil.rmtree(kept, ignore_errors=True)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with scratch_folder(home, ".unfinished-") as folder:
            build(folder)
            with contextlib.suppress(OSError):  # another process finished first: its folder is equal
                folder.rename(kept)
            return use(kept if kept.is_dir() else folder)
    except OSError as error:
        logger.warning("the converted model is not kept: %s", error)
    with tempfile.TemporaryDirectory(prefix="hardnet-") as name:
        build(Path(name))
        return use(Path(name))
