"""Save a model with its classes and preprocessing to a folder or to the Hugging Face Hub, and load it from there.

A folder holds ``model.safetensors``, ``config.json`` (in timm's format, with an entry ``hardnet``) and a model card.
No path is taken from ``config.json``, and nothing in the folder can run code.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..images.preprocess import Preprocessing
from ..models.config import CONFIGS, HarDNetConfig, head_index
from ..models.network import HarDNet
from ..utils.errors import WeightsError
from ..utils.files import expand_user, write_atomically
from ..utils.optional import require
from ..utils.text import printable, reason
from ..utils.version import __version__
from .catalog import Digest, WeightsRecord
from .files import deserialise, read_file, require_safetensors
from .state_dict import StateDict, find_record, find_state, head_classes, load_state

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
HUB_PREFIX = "hf-hub:"

_CARD_HEAD = """---
library_name: hardnet
pipeline_tag: image-classification
tags: [image-classification, hardnet, timm]
---

# {name}

A HarDNet image classifier with {classes} classes, saved by hardnet {version}."""
_CARD_USE = """```python
import hardnet

model = hardnet.from_pretrained("FOLDER_OR_OWNER/NAME").eval()
```
"""
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_Model = TypeVar("_Model", bound=HarDNet)


@dataclass(frozen=True)
class Pretrained:
    """The content of a folder."""

    config: HarDNetConfig
    state: StateDict
    record: WeightsRecord
    """Classes and preprocessing; no classes where their names are unknown."""
    num_classes: int


def is_pretrained(weights: object) -> bool:
    """Return whether ``weights`` names a folder or a repository of the Hub."""
    if isinstance(weights, str) and weights.startswith(HUB_PREFIX):
        return True
    return isinstance(weights, (str, os.PathLike)) and expand_user(weights).is_dir()


def save_pretrained(
    model: HarDNet,
    folder: str | os.PathLike[str],
    *,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Save a model to a folder: weights, architecture, classes, preprocessing and a model card.

    Args:
        model: the model.
        folder: is created; its files are replaced, except for an existing model card.
        labels: the names of the classes. None takes those of the loaded weights if their number fits.
        preprocessing: None takes that of the loaded weights, if known.
        notes: further paragraphs of a new model card, such as measured errors, in Markdown.

    Raises:
        ValueError: the labels do not fit the model, or it is not one of the four variants.
        OSError: the folder cannot be written.
        ImportError: safetensors is not installed.
    """
    require_safetensors()
    from safetensors.torch import save

    config, record = model.config, model.weights_record
    known = CONFIGS.get(config.name)
    if known is None or replace(known, block_activation=config.block_activation) != config:
        raise ValueError(f"{config.name} is not one of {', '.join(CONFIGS)}: save its state dict instead")
    if model.num_classes < 1:
        raise ValueError("a model without classes cannot be saved to a folder: save its state dict instead")
    if labels is None and record is not None and record.num_classes == model.num_classes:
        labels = record.categories
    if labels is not None and len(labels) != model.num_classes:
        raise ValueError(f"{len(labels)} labels for {model.num_classes} classes")
    if preprocessing is None and record is not None:
        preprocessing = record.preprocessing
    content = _config(model, labels, preprocessing)
    target = expand_user(folder)
    target.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with write_atomically(target / WEIGHTS) as file:
        file.write(save(state, metadata={"format": "pt"}))
    with write_atomically(target / CONFIG) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False).encode())
    if not (target / CARD).exists():
        with write_atomically(target / CARD) as file:
            file.write(_card(model, labels, preprocessing, notes).encode())


def push_to_hub(
    model: HarDNet, repo: str, *, token: str | None = None, private: bool | None = None, **options: Any
) -> str:
    """Save a model to a repository of the Hub in one commit and return the commit's address.

    Args:
        model: the model.
        repo: "owner/name"; it is created if it does not exist.
        token: None takes that of ``hf auth login``.
        private: for a new repository; None takes the owner's default.
        options: keywords of :func:`save_pretrained`.

    Raises:
        ImportError: huggingface_hub or safetensors is not installed.
    """
    hub = require("huggingface_hub", "0.25")
    api = hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, **options)
        name = api.create_repo(repo_id=repo, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Save a HarDNet model"))


def build_pretrained(
    kind: type[_Model], source: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
) -> _Model:
    """Build a HarDNet, or a subclass with the same arguments; see :func:`hardnet.from_pretrained`."""
    found = read_pretrained(source, revision=revision, token=token)
    stem = found.state.get("base.0.conv.weight")
    in_chans = stem.shape[1] if stem is not None and stem.dim() == 4 and stem.shape[1] else 3
    model = kind(found.config, num_classes=found.num_classes, in_chans=in_chans)
    load_state(model, found.state, str(source))
    model.weights_record = found.record
    return model


def read_pretrained(
    source: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
) -> Pretrained:
    """Read a folder, or a repository with or without "hf-hub:" before its name; see ``hardnet.from_pretrained``."""
    folder = expand_user(source)
    name = str(source).removeprefix(HUB_PREFIX)
    if str(source).startswith(HUB_PREFIX) or (not folder.exists() and _REPOSITORY.fullmatch(name)):
        if not _REPOSITORY.fullmatch(name):
            raise WeightsError(f"{source}: expected {HUB_PREFIX}owner/name or {HUB_PREFIX}owner/name@revision")
        name, _, tag = name.partition("@")
        folder = _download(name, revision or tag or None, token)
    return _read_folder(folder, str(source))


def _download(repo: str, revision: str | None, token: str | None) -> Path:
    """Return the folder of a repository in the Hub's cache, its files checked against the Hub's hashes."""
    hub = require("huggingface_hub", "0.25")
    try:
        folder = Path(hub.snapshot_download(repo, revision=revision, token=token, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # of the HTTP library as well, which differs between versions
        raise WeightsError(f"{HUB_PREFIX}{repo} could not be downloaded: {reason(error)[:500]}") from error
    for file in (folder / CONFIG, folder / WEIGHTS):
        digest = file.resolve().name  # in the cache, a link to a file that is named by its hash
        scheme = {64: "sha256", 40: "git-blob-sha1"}.get(len(digest) if re.fullmatch("[0-9a-f]+", digest) else 0)
        if file.is_file() and scheme and not Digest(scheme, digest).matches(file.read_bytes()):  # type: ignore[arg-type]
            raise WeightsError(
                f"{HUB_PREFIX}{repo}: {file.name} does not have the hash that the Hub states; delete {file.resolve()}"
            )
    return folder


def _read_folder(folder: Path, origin: str) -> Pretrained:
    try:
        told = json.loads(read_file(folder / CONFIG))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{origin}: {CONFIG} is not valid JSON: {printable(str(error))}") from error
    if not isinstance(told, dict):
        raise WeightsError(f"{origin}: {CONFIG} must hold an object")
    own = told.get("hardnet", {})
    name, classes, labels = told.get("architecture"), told.get("num_classes"), told.get("label_names")
    if not isinstance(name, str) or name not in CONFIGS:
        raise WeightsError(f"{origin}: unknown architecture {name!r:.100}; known: {', '.join(CONFIGS)}")
    if type(classes) is not int or classes < 1:
        raise WeightsError(f"{origin}: num_classes must be an integer >= 1, got {classes!r:.100}")
    if labels is not None and (not isinstance(labels, list) or len(labels) != classes):
        raise WeightsError(f"{origin}: label_names must be a list of {classes} names")
    activation = own.get("block_activation", "relu6") if isinstance(own, dict) else None
    if activation not in ("relu", "relu6"):
        raise WeightsError(f"{origin}: block_activation must be relu or relu6, got {activation!r:.100}")
    record = find_record({"classes": labels or [], "preprocessing": _preprocessing(told, own)}, origin, name)
    assert record is not None  # noqa: S101  both entries are there
    config = replace(CONFIGS[name], block_activation=activation)
    state = find_state(deserialise(read_file(folder / WEIGHTS), f"{origin}/{WEIGHTS}"), origin, config)
    found = head_classes(state, config, origin)
    if found not in (None, classes):  # without a head, loading fails with the reason
        raise WeightsError(f"{origin}: {CONFIG} has {classes} classes, {WEIGHTS} {found}")
    record = replace(record, block_activation=activation)
    return Pretrained(config, state, record, classes)


def _preprocessing(told: dict[str, Any], own: dict[str, Any]) -> object:
    """Return the entry of a config.json, of this library's own or of timm's; ImageNet's if there is neither."""
    cfg = told.get("pretrained_cfg")
    if "preprocessing" in own:
        return own["preprocessing"]
    if not isinstance(cfg, dict) or not {"input_size", "crop_pct", "mean", "std"} <= cfg.keys():
        return Preprocessing().to_dict()
    try:
        crop = cfg["input_size"][-1]
        return {"resize": round(crop / cfg["crop_pct"]), "crop": crop, "mean": cfg["mean"], "std": cfg["std"]}
    except (TypeError, ArithmeticError, LookupError, ValueError):
        return None


def _config(model: HarDNet, labels: Sequence[str] | None, preprocessing: Preprocessing | None) -> dict[str, Any]:
    own: dict[str, Any] = {"version": __version__, "block_activation": model.config.block_activation}
    cfg: dict[str, Any] = {
        "num_classes": model.num_classes,
        "first_conv": "base.0.conv",
        "classifier": f"base.{head_index(model.config)}.3",
    }
    if preprocessing is not None:
        own["preprocessing"] = told = preprocessing.to_dict()
        cfg |= {"input_size": [model.in_chans, told["crop"], told["crop"]], "interpolation": "bilinear"}
        cfg |= {"crop_pct": told["crop"] / told["resize"], "mean": told["mean"], "std": told["std"]}
    content: dict[str, Any] = {"architecture": model.config.name, "num_classes": model.num_classes}
    content |= {"num_features": model.num_features} | ({"label_names": list(labels)} if labels is not None else {})
    if model.in_chans != 3:
        content["model_args"] = {"in_chans": model.in_chans}
    return content | {"pretrained_cfg": cfg, "hardnet": own}


def _card(
    model: HarDNet, labels: Sequence[str] | None, preprocessing: Preprocessing | None, notes: Sequence[str]
) -> str:
    paragraphs = [_CARD_HEAD.format(name=model.config.name, classes=model.num_classes, version=__version__)]
    record = model.weights_record
    if isinstance(record, WeightsRecord) and record.sources:
        paragraphs.append(f"Initial weights: {record}, {record.provenance}, licence {record.licence}.")
    paragraphs += notes
    if preprocessing is not None:
        paragraphs.append(f"Preprocessing: {preprocessing!r}")
    if labels is not None:
        shown = ", ".join(printable(label) for label in labels[:20])
        paragraphs.append(f"Classes: {shown}{', ...' if len(labels) > 20 else ''}")
    return "\n\n".join([*paragraphs, _CARD_USE])


# The methods of HarDNet for this format. They are set here because the network does not import the weights.
HarDNet.save_pretrained = save_pretrained  # type: ignore[method-assign, assignment]
HarDNet.push_to_hub = push_to_hub  # type: ignore[method-assign, assignment]
HarDNet.from_pretrained = classmethod(build_pretrained)  # type: ignore[method-assign, assignment]
