"""Keep converted models: one folder per model, weights, engine and versions in torch.hub's directory."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.hub
from torch import Tensor, nn

from ..models.network import ImageModule
from ..utils.files import scratch_folder
from ..utils.version import __version__
from .base import Conversion, EngineSettings, Run, levels_of
from .calibration import check_agreement
from .folding import fold

logger = logging.getLogger(__name__)

MOST_CONVERSIONS = 32
"""Number of converted models that are kept: those that were used last."""

_DIGESTS = "digests.json"


def artifacts_dir() -> Path:
    """Return the folder of the converted models: ``hardnet-engines`` in torch.hub's directory (see ``TORCH_HOME``)."""
    return Path(torch.hub.get_dir()) / "hardnet-engines"


def converted(
    model: ImageModule,
    settings: EngineSettings,
    calibration: list[Tensor],
    conditions: object,
    name: str,
    write: Callable[[Conversion, Path], None],
    load: Callable[[Path], Run],
) -> Run:
    """Return a model from the cache, or converted now; nothing is kept of an int8 model that changes the labels.

    ``conditions`` are what the file depends on besides model and calibration, ``name`` is the file's. ``load`` returns
    the function that runs the model and returns a list.
    """
    versions = (__version__, torch.__version__, settings.engine, settings.checked)
    digest = digest_of(model, calibration, *versions, conditions, str(model))

    def build(folder: Path) -> None:
        folded = fold(model).cpu().float()
        example = torch.zeros(2, model.in_chans, 64, 96)
        write(Conversion(folded, example, settings.precision, calibration, [], {}), folder / name)
        if settings.checked and calibration:
            check_agreement(folded, load(folder / name), calibration, bool(getattr(model, "num_classes", None)))

    key = f"{model.config.name}-{settings.engine}-{digest[:32]}"
    run = from_artifact(key, build, lambda folder: load(folder / name))
    return run if settings.several else lambda x: levels_of(run(x))[0]


def digest_of(model: nn.Module, calibration: Iterable[Tensor] = (), *conditions: object) -> str:
    """Return the SHA-256 of a module's configuration and weights, of calibration images and of further conditions."""
    digest = hashlib.sha256(repr((getattr(model, "config", None), *conditions)).encode())
    for name, tensor in [*model.state_dict().items(), *(("calibration", images) for images in calibration)]:
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def from_artifact(key: str, build: Callable[[Path], None], use: Callable[[Path], Run]) -> Run:
    """Return ``use(folder)`` for the folder of a conversion; call ``build(folder)`` first if it does not exist.

    The folder gets its name when it is complete and on the disk, so that parallel and interrupted conversions do no
    harm. One whose files have other bytes than were written is made again. Where nothing can be written, a temporary
    folder is used, with a warning in the log.
    """
    home = artifacts_dir()
    entry = home / key
    if entry.is_dir():
        try:
            if json.loads((entry / _DIGESTS).read_bytes()) != _digests(entry):
                raise ValueError("its files are not those that were written")
            os.utime(entry)
            return use(entry)
        except Exception as error:  # any error of an engine that reads a damaged file
            logger.warning("the converted model in %s cannot be used (%s); converting again", entry, error)
            shutil.rmtree(entry, ignore_errors=True)
    try:
        home.mkdir(parents=True, exist_ok=True)
        ages = []
        for path in home.iterdir():
            with contextlib.suppress(OSError):  # another process has renamed or removed it
                ages.append((path.stat().st_mtime, path))
        for _, path in sorted(ages)[: 1 - MOST_CONVERSIONS]:
            shutil.rmtree(path, ignore_errors=True)
        with scratch_folder(home, ".unfinished-") as folder:
            build(folder)
            (folder / _DIGESTS).write_text(json.dumps(_digests(folder)))
            for path in folder.iterdir():
                with path.open("r+b") as file:
                    os.fsync(file.fileno())
            with contextlib.suppress(OSError):  # another process finished first: its folder is equal
                folder.rename(entry)
            return use(entry if entry.is_dir() else folder)
    except OSError as error:
        logger.warning("the converted model is not kept: %s", error)
    with tempfile.TemporaryDirectory(prefix="hardnet-", ignore_cleanup_errors=True) as name:
        build(Path(name))
        return use(Path(name))


def _digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.iterdir() if path.name != _DIGESTS)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
