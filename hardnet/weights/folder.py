"""Save a model with its classes and preprocessing to a folder or to the Hugging Face Hub, and read it from there.

A folder holds ``model.safetensors``, ``config.json`` (timm's format, with an entry ``hardnet``) and a model card. The
weights carry a copy of the configuration, ``config.json`` the digest of the weights: an interrupted save leaves the old
model or the new one, and files of two models are not mixed. No path is taken from ``config.json``, and nothing in the
folder can run code.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..images.preprocess import Preprocessing
from ..models.config import CONFIGS
from ..models.network import HarDNet, warn_if_untrained
from ..utils.errors import WeightsError
from ..utils.files import expand_user, locked, write_atomically
from ..utils.optional import require
from ..utils.text import printable, reason
from ..utils.version import __version__
from .catalog import Digest, DigestScheme
from .download import is_offline
from .files import deserialise, read_file

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
HUB_PREFIX = "hf-hub:"

_MARK = "<!-- Written by hardnet, which replaces this card when it saves a model here. Remove this line to keep it. -->"
_CARD = """---
library_name: hardnet
pipeline_tag: image-classification
tags: [image-classification, hardnet, timm]
---

{mark}

# {model.config.name}

A HarDNet image classifier with {model.num_classes} classes, saved by hardnet {version}.

```python
import hardnet

classifier = hardnet.Classifier("{place}")
[result] = classifier.predict("picture.jpg")
print(result.top.label, result.top.probability)
```

The names of the classes are `classifier.labels`, and `label_names` in `config.json`. The model alone:
`hardnet.from_pretrained("{place}")`.
"""
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_TIMM_WEIGHTS = "pytorch_model.bin"
_HUB_HASHES: dict[int, DigestScheme] = {64: "sha256", 40: "git-blob-sha1"}  # by the length of a name in its cache


def check_categories(labels: object) -> tuple[str, ...]:
    """Return the names of classes as a tuple; a ValueError names what is not a list of names."""
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise ValueError(f"labels must be a list of names, got {type(labels).__name__}")
    for number, name in enumerate(labels):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"labels must be a list of names, got {name!r:.100} for class {number}")
    return tuple(labels)


def save_pretrained(
    model: HarDNet, folder: str | os.PathLike[str], *, labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None, notes: Sequence[str] = (), repository: str | None = None,
) -> None:  # fmt: skip
    """Save a model to a folder: weights, architecture, classes, preprocessing and a model card.

    All is checked and encoded before the first file changes. A process that is killed leaves the old model or the new.

    Args:
        model: the model.
        folder: is created; its files are replaced, except for a model card that somebody else has written.
        labels: names of the classes in the order of the logits; None takes ``model.categories``.
        preprocessing: None takes ``model.preprocessing``.
        notes: further paragraphs of the model card, such as measured errors, in Markdown.
        repository: name that the model card shows in place of the folder's, such as "owner/name".

    Raises:
        ValueError: labels that are not one name per class, or a model that ``from_pretrained`` could not build again:
            other than the four variants, without classes, or with replaced layers.
        OSError: the folder cannot be written.
        OutputError: another process is saving to it.
        ImportError: safetensors is not installed.
    """
    require("safetensors", "0.4.3")
    from safetensors.torch import save

    _check_rebuildable(model)
    warn_if_untrained(model)
    categories = model.categories if labels is None else check_categories(labels)
    if categories is not None and len(categories) != model.num_classes:
        raise ValueError(f"{len(categories)} labels for {model.num_classes} classes")
    preprocessing = model.preprocessing if preprocessing is None else preprocessing
    target = expand_user(folder)
    config = _config(model, categories, preprocessing)
    card = _card(model, categories, notes, repository or target.name)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    weights = save(state, metadata={"format": "pt", "hardnet": json.dumps(config, ensure_ascii=False)})
    config["hardnet"]["sha256"] = hashlib.sha256(weights).hexdigest()
    # What counts from the first file on are the weights, since they carry the configuration.
    files = {WEIGHTS: weights, CONFIG: json.dumps(config, indent=2, ensure_ascii=False).encode(), CARD: card.encode()}
    target.mkdir(parents=True, exist_ok=True)
    with locked(target / CONFIG):
        if (target / CARD).exists() and _MARK not in (target / CARD).read_text("utf-8", "replace"):
            del files[CARD]
        for name, content in files.items():
            with write_atomically(target / name) as file:
                file.write(content)


def _check_rebuildable(model: HarDNet) -> None:
    """Raise ValueError unless the configuration describes the whole model."""
    config = model.config
    advice = "save its state dict instead, with torch.save"
    if config.name not in CONFIGS or replace(CONFIGS[config.name], block_activation=config.block_activation) != config:
        raise ValueError(f"{config.name} is not one of {', '.join(CONFIGS)}: {advice}")
    if model.num_classes < 1:
        raise ValueError(f"a model without classes cannot be saved to a folder: {advice}")
    with torch.device("meta"):
        plain = HarDNet(config, num_classes=model.num_classes, in_chans=model.in_chans)
    changed = _structure(plain) ^ _structure(model)
    if changed:
        raise ValueError(f"base.{min(changed)[0]} is not as in {config.name}, which a folder cannot say: {advice}")


def _structure(model: HarDNet) -> set[tuple[str, str]]:
    """Describe the layers: equal for models that compute the same, in evaluation mode, from the same parameters."""
    descriptions = set()
    for name, module in model.base.named_modules():
        kind = type(module).__name__
        if "BatchNorm" in kind:  # synchronised and frozen normalisation, too
            descriptions.add((name, f"BatchNorm({getattr(module, 'eps', None)})"))
        elif not list(module.children()):
            descriptions.add((name, kind if isinstance(module, nn.Dropout) else repr(module)))
    return descriptions


def push_to_hub(model: HarDNet, repo: str, *, private: bool | None = None, **options: Any) -> str:
    """Save a model to a repository of the Hub in one commit and return the commit's address.

    Args:
        model: the model.
        repo: "owner/name"; it is created if it does not exist.
        private: for a new repository; None takes the owner's default.
        options: keywords of :func:`save_pretrained`.

    Raises:
        ImportError: huggingface_hub or safetensors is not installed.
    """
    api = require("huggingface_hub", "0.25").HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, **{"repository": repo, **options})
        name = api.create_repo(repo_id=repo, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Save a HarDNet model"))


def is_repository(source: str) -> bool:
    """Return whether a text has the form of a repository's name: owner/name or owner/name@revision."""
    return bool(_REPOSITORY.fullmatch(source))


def download_repository(name: str) -> Path:
    """Return the folder of a repository in the Hub's cache, its files checked against the Hub's hashes.

    With ``HARDNET_OFFLINE=1`` only the cache is searched.
    """
    if not is_repository(name):
        raise WeightsError(f"expected {HUB_PREFIX}owner/name or {HUB_PREFIX}owner/name@revision")
    name, _, revision = name.partition("@")
    hub = require("huggingface_hub", "0.25")
    offline = is_offline()
    options = {"allow_patterns": [CONFIG, WEIGHTS], "local_files_only": offline}
    try:
        folder = Path(hub.snapshot_download(name, revision=revision or None, **options))
    except Exception as error:  # of the HTTP library as well, which differs between versions
        note = " (HARDNET_OFFLINE is set: it must be in the cache)" if offline else ""
        raise WeightsError(f"could not be downloaded{note}: {reason(error)[:500]}") from error
    for file in (folder / CONFIG, folder / WEIGHTS):
        stored = file.resolve()  # the file is a link to one that is named by its hash
        scheme = _HUB_HASHES.get(len(stored.name))
        if not stored.is_file():
            continue
        if scheme is None:
            raise WeightsError(f"{file.name} cannot be checked: {stored.name:.80} is no known hash of the Hub")
        if not Digest(scheme, stored.name).matches(stored.read_bytes()):
            raise WeightsError(f"{file.name} does not have the hash that the Hub states; delete {stored}")
    return folder


def read_folder(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return the content of the weights file of a saved model, and its description; see :func:`read_description`."""
    weights = folder / WEIGHTS
    if not weights.exists() and (folder / _TIMM_WEIGHTS).exists():
        weights = folder / _TIMM_WEIGHTS
    content, config = _read(weights), _entries(_read(folder / CONFIG))
    if config["hardnet"].get("sha256") in (None, hashlib.sha256(content).hexdigest()):
        return deserialise(content, weights.name), _description(config)
    description = read_description(content)
    if description is None:
        raise WeightsError(f"{CONFIG} belongs to other weights than {weights.name}: copy both files of one model")
    logger.warning("%s: %s belongs to other weights and is ignored", printable(str(folder)), CONFIG)
    return deserialise(content, weights.name), description


def read_description(content: bytes) -> dict[str, Any] | None:
    """Return what a safetensors file of :func:`save_pretrained` says about itself; None for other files.

    The entries are those of a file of ``hardnet train``: ``architecture``, ``block_activation``, ``classes`` and
    ``preprocessing``. Format: https://github.com/huggingface/safetensors#format.
    """
    length = int.from_bytes(content[:8], "little")
    try:
        config = json.loads(content[8 : 8 + length] if length < len(content) else b"")["__metadata__"]["hardnet"]
    except (ValueError, RecursionError, TypeError, LookupError):
        return None
    return _description(_entries(config))


def _read(path: Path) -> bytes:
    try:
        return read_file(path)
    except WeightsError as error:
        raise WeightsError(f"{path.name}: {error}") from error


def _entries(content: bytes | str) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError, TypeError) as error:
        raise WeightsError(f"{CONFIG} is not valid JSON: {printable(str(error))}") from error
    if not isinstance(config, dict) or not isinstance(config.setdefault("hardnet", {}), dict):
        raise WeightsError(f'{CONFIG} and its entry "hardnet" must hold an object')
    return config


def _description(config: dict[str, Any]) -> dict[str, Any]:
    name, section = config.get("architecture"), config["hardnet"]
    if not isinstance(name, str) or name not in CONFIGS:
        raise WeightsError(f"unknown architecture {name!r:.100}; known: {', '.join(CONFIGS)}")
    return {
        "architecture": name,
        "block_activation": section.get("block_activation", "relu6"),
        "classes": config.get("label_names"),
        "preprocessing": section.get("preprocessing") or _preprocessing_of_timm(config.get("pretrained_cfg")),
    }


def _preprocessing_of_timm(cfg: Any) -> dict[str, Any] | None:
    """Return the preprocessing of timm's configuration; ImageNet's if it has none, None if it makes no sense."""
    if not isinstance(cfg, dict) or not {"input_size", "crop_pct", "mean", "std"} <= cfg.keys():
        return Preprocessing().to_dict()
    try:
        crop = cfg["input_size"][-1]
        return {"interpolation": "bilinear", **cfg, "resize": round(crop / cfg["crop_pct"]), "crop": crop}
    except (TypeError, ArithmeticError, LookupError, ValueError):
        return None


def _config(model: HarDNet, labels: Sequence[str] | None, preprocessing: Preprocessing | None) -> dict[str, Any]:
    section: dict[str, Any] = {"version": __version__, "block_activation": model.config.block_activation}
    cfg = {"num_classes": model.num_classes, "first_conv": "base.0.conv", "classifier": model.config.head}
    if preprocessing is not None:
        section["preprocessing"] = values = preprocessing.to_dict()
        if preprocessing.resize:  # else the whole picture, at its size
            cfg |= {"input_size": [model.in_chans, values["crop"], values["crop"]]}
            cfg |= {"crop_pct": values["crop"] / values["resize"]}
        cfg |= {name: values[name] for name in ("interpolation", "mean", "std")}
    content = {"architecture": model.config.name, "num_classes": model.num_classes, "num_features": model.num_features}
    if labels is not None:
        content["label_names"] = list(labels)
    if model.in_chans != 3:
        content["model_args"] = {"in_chans": model.in_chans}
    return content | {"pretrained_cfg": cfg, "hardnet": section}


def _card(model: HarDNet, labels: Sequence[str] | None, notes: Sequence[str], place: str) -> str:
    paragraphs = [_CARD.format(mark=_MARK, model=model, version=__version__, place=printable(place)).strip()]
    record = model.weights_record
    if record is not None:
        paragraphs.append(f"Initial weights: {record}, {record.provenance}, licence {record.licence}.")
    paragraphs += notes
    if labels is not None:
        names = ", ".join(printable(label) for label in labels[:20])
        paragraphs.append(f"Classes: {names}{', ...' if len(labels) > 20 else ''}")
    return "\n\n".join(paragraphs) + "\n"
