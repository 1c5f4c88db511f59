"""File -> state dict that fits the model: unwrapping, renaming, adaptation of stem and head.

The bytes are read by :mod:`hardnet.weights.reading`, which runs no code from them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..models.config import CONFIGS, STEM_LENGTH, HarDNetConfig, head_index, stage_indices
from ..models.features import HarDNetFeatures
from ..models.network import HarDNet
from ..utils.errors import WeightsError
from ..utils.text import printable
from .reading import deserialise, odd_kind

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

WRAPPERS = ("state_dict", "model", "model_state")
"""Entries under which training scripts keep the state dict."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put in front of every key."""

_MOST_ENTRIES = 10_000  # the largest model has under 1,000
_STEM_KEY = "base.0.conv.weight"
_COLOURS = 3
_SHOWN = 4


def parse_checkpoint(content: bytes, origin: str, config: HarDNetConfig) -> StateDict:
    """Return the state dict in a file's bytes, under the original implementation's keys.

    Takes a raw state dict or one wrapped by a training script, with or without the prefixes that
    DistributedDataParallel and torch.compile add, under the original's keys or imgclsmob's, in torch's
    format or, where ``origin`` ends in ``.safetensors``, in that one. Tensors are on the CPU.

    Raises:
        WeightsError: the bytes are something else; the message starts with ``origin``.
        ImportError: it is a safetensors file and the package is not installed.
    """
    return find_state(deserialise(content, origin), origin, config)


def find_state(loaded: object, origin: str, config: HarDNetConfig) -> StateDict:
    """Return the state dict in what a file held, as :func:`parse_checkpoint` does for the file's bytes.

    Raises:
        WeightsError: there is none, it does not belong to this model, or it has values that are no numbers.
    """
    state = _unwrap(loaded, origin)
    if len(state) > _MOST_ENTRIES:
        raise WeightsError(f"{origin} has {len(state)} entries, no model here has so many")
    state = _strip_prefixes(state)
    if any(key.startswith("features.") for key in state):
        state = rename_imgclsmob(state, config, origin)
    odd = [f"{key} ({kind})" for key, value in state.items() if (kind := odd_kind(value))]
    if odd:
        raise WeightsError(f"{origin}: tensors of a kind that is not read: {_enumerate(odd)}")
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise WeightsError(f"{origin}: NaN or infinite values in {_enumerate(broken)}")
    return state


def _unwrap(loaded: Any, origin: str) -> StateDict:
    if isinstance(loaded, dict):
        for candidate in (loaded, *(loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), dict))):
            if candidate and all(isinstance(value, Tensor) for value in candidate.values()):
                return {_text(key): value for key, value in candidate.items()}
        found = "has the entries " + _enumerate([_text(key) for key in loaded]) if loaded else "is empty"
    else:
        found = f"holds an object of type {type(loaded).__name__}"
    raise WeightsError(f"{origin} {found}; a state dict, or one under {', '.join(map(repr, WRAPPERS))}, is wanted")


def _text(key: object) -> str:
    return str(key) if isinstance(key, (str, int)) else f"<{type(key).__name__}>"  # whose own text may be endless


def _strip_prefixes(state: StateDict) -> StateDict:
    prefix = next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in state)), None)
    if prefix is None:
        return state
    return _strip_prefixes({key.removeprefix(prefix): value for key, value in state.items()})


def rename_imgclsmob(state: StateDict, config: HarDNetConfig, origin: str = "state dict") -> StateDict:
    """Rename a state dict of imgclsmob (pytorchcv) to the original implementation's keys, in their order.

    Raises:
        WeightsError: keys are missing or unknown for this model.
    """
    names = {key: imgclsmob_key(key, config) for key in _expected_shapes(config)}
    missing = names.values() - state.keys()
    unknown = state.keys() - names.values()
    if missing or unknown:
        raise WeightsError(_mismatch(config.name, origin, missing=missing, unexpected=unknown))
    return {key: state[name] for key, name in names.items()}


def imgclsmob_key(key: str, config: HarDNetConfig) -> str:
    """Return imgclsmob's name for one key of the original's state dict.

    >>> imgclsmob_key("base.3.layers.0.norm.bias", CONFIGS["hardnet68"])
    'features.stage1.unit1.blocks.block1.bn.bias'
    """
    _, index, rest = key.split(".", 2)
    if int(index) == head_index(config):
        return "output.fc." + rest.removeprefix("3.")
    rest = rest.replace("norm.", "bn.").replace("dwconv.", "conv.")
    if int(index) < STEM_LENGTH:
        return f"features.init_block.{('conv1', 'conv2', 'downsample')[int(index)]}.{rest}"
    for unit, stage in zip(_imgclsmob_units(config), stage_indices(config), strict=True):
        if int(index) == stage.block:
            _, layer, rest = rest.split(".", 2)
            rest = rest.replace("layer1.", "pw_conv.").replace("layer2.", "dw_conv.")
            return f"{unit}.blocks.block{int(layer) + 1}.{rest}"
        if int(index) == stage.transition:
            return f"{unit}.conv.{rest}"
        if int(index) == stage.downsample:
            return f"{unit}.downsample.{rest}"
    raise KeyError(key)


def _imgclsmob_units(config: HarDNetConfig) -> Iterator[str]:
    """Name the units: a stage ends with each downsampling."""
    stage = unit = 1
    for downsample in config.downsample:
        yield f"features.stage{stage}.unit{unit}"
        stage, unit = (stage + 1, 1) if downsample else (stage, unit + 1)


@functools.cache
def _expected_shapes(config: HarDNetConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in HarDNet(config).state_dict().items()}


def adapt_stem(weight: Tensor, in_chans: int) -> Tensor:
    """Adapt a stem trained on three colours: (C, 3, k, k) -> (C, in_chans, k, k).

    One channel gets the sum over the colours, so that a grey image gives what it gave as three equal
    colours. More channels repeat the colours in turn, scaled by 3 / in_chans to keep the activations' size.
    """
    if in_chans == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-in_chans // _COLOURS)
    return weight.repeat(1, repeats, 1, 1)[:, :in_chans] * (_COLOURS / in_chans)


def head_classes(state: StateDict, config: HarDNetConfig) -> int | None:
    """Return the number of classes of a state dict's linear layer; None where it has none."""
    weight = state.get(f"base.{head_index(config)}.3.weight")
    return None if weight is None or weight.dim() != 2 else weight.shape[0]


def load_state(model: HarDNet | HarDNetFeatures, state: StateDict, origin: str) -> None:
    """Load a state dict strictly, but for a head of other classes and a stem of other channels.

    With other classes the model keeps its new head, and a log line says so; a stem trained on three colours is adapted
    (see :func:`adapt_stem`). A feature pyramid leaves out what it has not built. All is checked before the first
    parameter changes.

    Raises:
        WeightsError: keys are missing or unknown, or shapes differ; the model is as it was.
    """
    own = model.state_dict()
    state = dict(state)
    if isinstance(model, HarDNet):
        _fit_head(model, state, origin)
    else:
        for key in _expected_shapes(model.config).keys() - own.keys():
            state.pop(key, None)
    stem = state.get(_STEM_KEY)
    if stem is not None and stem.dim() == 4 and stem.shape[1] == _COLOURS != model.in_chans:
        state[_STEM_KEY] = adapt_stem(stem, model.in_chans)
        logger.info("%s: stem adapted from %d to %d channels", origin, _COLOURS, model.in_chans)
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    both = [(key, state[key], value) for key, value in own.items() if key in state]
    shapes = [
        f"{key} {tuple(theirs.shape)} in the file, {tuple(ours.shape)} in the model"
        for key, theirs, ours in both
        if theirs.shape != ours.shape
    ]
    types = [
        f"{key} {theirs.dtype}" for key, theirs, ours in both if theirs.is_floating_point() != ours.is_floating_point()
    ]
    if missing or unexpected or shapes or types:
        advice = _which_model(state, model.config.name)
        raise WeightsError(_mismatch(model.config.name, origin, missing, unexpected, shapes, types) + advice)
    model.load_state_dict(state, strict=True)


def _fit_head(model: HarDNet, state: StateDict, origin: str) -> None:
    """Where the numbers of classes differ, put the model's own head into the state dict."""
    classes = head_classes(state, model.config)
    if classes is None or classes == model.num_classes:
        return
    head = f"base.{head_index(model.config)}."
    for key in [key for key in state if key.startswith(head)]:
        del state[key]
    state.update({key: value for key, value in model.state_dict().items() if key.startswith(head)})
    outcome = "the head is new and untrained" if model.num_classes else "the head is left out"
    logger.info("%s: %d classes in the weights, %d in the model: %s", origin, classes, model.num_classes, outcome)


def _mismatch(
    name: str,
    origin: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    shapes: Iterable[str] = (),
    types: Iterable[str] = (),
) -> str:
    kinds = (
        ("missing keys", sorted(missing)),
        ("unknown keys", sorted(unexpected)),
        ("other shapes", list(shapes)),
        ("other types", list(types)),
    )
    parts = [f"{len(found)} {kind} ({_enumerate(found)})" for kind, found in kinds if found]
    return f"{origin} does not fit {name}: " + "; ".join(parts)


def _which_model(state: StateDict, wanted: str) -> str:
    """Name the variant that the keys and channel counts are really of."""
    for name, config in CONFIGS.items():
        if name == wanted:
            continue
        other = _expected_shapes(config)
        if other.keys() == state.keys() and all(other[key][:1] == state[key].shape[:1] for key in list(other)[:-2]):
            return f". It looks like a checkpoint of {name}"
    return ""


def _enumerate(names: list[str]) -> str:
    # Names come from the file: they need not be short, nor text that can be shown.
    shown = ", ".join(printable(name[:100]) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
