"""Turn the content of a checkpoint file into a state dict that fits the model, and into its record.

Unwraps what training scripts write, renames imgclsmob's keys, adapts stem and head, loads strictly.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..images.preprocess import Preprocessing
from ..models.config import CONFIGS, STEM_LENGTH, HarDNetConfig, head_index, stage_indices
from ..models.features import HarDNetFeatures
from ..models.network import HarDNet
from ..utils.errors import WeightsError
from ..utils.text import printable
from .catalog import WeightsRecord

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

WRAPPERS = ("state_dict", "model", "model_state")
"""Entries under which training scripts store the state dict."""
AVERAGED = ("state_dict_ema", "model_ema")
"""Entries under which they store the moving average of the weights."""

_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile add to every key."""

_STEM_KEY = "base.0.conv.weight"
_COLOURS = 3
_SHOWN = 4


def find_state(loaded: object, origin: str, config: HarDNetConfig, *, use_ema: bool = True) -> StateDict:
    """Return the state dict in a file's content, under the original implementation's keys.

    ``loaded`` is a state dict or a training checkpoint with one, under the original's keys or imgclsmob's, with or
    without the prefixes that DistributedDataParallel and torch.compile add. ``use_ema`` prefers the moving average.

    Raises:
        WeightsError: there is none.
    """
    state = _strip_prefixes(_unwrap(loaded, origin, use_ema))
    imgclsmob = any(key.startswith("features.") for key in state)
    return rename_imgclsmob(state, config, origin) if imgclsmob else state


def _unwrap(loaded: Any, origin: str, use_ema: bool) -> StateDict:
    if isinstance(loaded, dict):
        if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
            return {str(key): value for key, value in loaded.items()}
        for name in (*AVERAGED, *WRAPPERS) if use_ema else WRAPPERS:
            entry = loaded.get(name)
            if isinstance(entry, dict) and entry and all(isinstance(value, Tensor) for value in entry.values()):
                logger.info("%s: weights of the entry %r", origin, name)
                # torch's AveragedModel also counts its updates.
                return {str(key): value for key, value in entry.items() if key != "n_averaged"}
        found = "has the entries " + _enumerate([str(key) for key in loaded]) if loaded else "is empty"
    else:
        found = f"holds an object of type {type(loaded).__name__}"
    raise WeightsError(f"{origin} {found}; expected a state dict, or one under {', '.join(map(repr, WRAPPERS))}")


def find_record(loaded: Any, origin: str, model: str) -> WeightsRecord | None:
    """Return the classes and the preprocessing that ``hardnet train`` wrote; None if the file holds neither.

    Raises:
        WeightsError: these entries are invalid; the message starts with ``origin``.
    """
    if not isinstance(loaded, dict) or not {"classes", "preprocessing"} <= loaded.keys():
        return None
    classes = loaded["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) and name.strip() for name in classes):
        raise WeightsError(f'{origin}: the entry "classes" must be a list of names')
    try:
        resize, crop, mean, std = (loaded["preprocessing"][key] for key in ("resize", "crop", "mean", "std"))
        preprocessing = Preprocessing(resize, crop, tuple(mean), tuple(std))
    except (LookupError, TypeError, ValueError) as error:
        raise WeightsError(f'{origin}: the entry "preprocessing" is not valid: {error}') from error
    return WeightsRecord(
        model=model,
        tag=origin,
        sources=(),
        provenance=origin,
        top1_error=math.nan,
        top5_error=math.nan,
        reported_by="",
        licence="",
        classes=tuple(classes),
        preprocessing=preprocessing,
    )


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
        raise WeightsError(_mismatch(config.name, origin, {"missing keys": missing, "unknown keys": unknown}))
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

    One channel gets the sum over the colours, so that a grey image gives the same output as three equal
    colours. More channels repeat the colours in turn, scaled by 3 / in_chans to keep the activations' size.
    """
    if in_chans == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-in_chans // _COLOURS)
    return weight.repeat(1, repeats, 1, 1)[:, :in_chans] * (_COLOURS / in_chans)


def head_classes(state: StateDict, config: HarDNetConfig, origin: str) -> int | None:
    """Return the number of classes of a state dict's linear layer; None if it has none.

    Raises:
        WeightsError: the layer has no classes.
    """
    weight = state.get(f"base.{head_index(config)}.3.weight")
    if weight is None or weight.dim() != 2:
        return None
    if not weight.shape[0]:
        raise WeightsError(f"{origin} has a head with 0 classes")
    return weight.shape[0]


def load_state(model: HarDNet | HarDNetFeatures, state: StateDict, origin: str) -> None:
    """Load a state dict strictly, except for a head of other classes and a stem of other channels.

    With other classes the model keeps its new head, and a log line says so; a stem trained on three colours is adapted
    (see :func:`adapt_stem`). A feature pyramid leaves out what it has not built. All is checked before the first
    parameter changes.

    Raises:
        WeightsError: keys are missing or unknown, shapes differ, or values are not finite in the model's type or
            variances negative; the model is unchanged.
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
    wrong: dict[str, Iterable[str]] = {
        "missing keys": own.keys() - state.keys(),
        "unknown keys": state.keys() - own.keys(),
        "other shapes": [
            f"{key} {tuple(theirs.shape)} in the file, {tuple(own[key].shape)} in the model"
            for key, theirs in state.items()
            if key in own and theirs.shape != own[key].shape
        ],
        "other types": [
            f"{key} {theirs.dtype}, {theirs.layout} on {theirs.device}"
            for key, theirs in state.items()
            if key in own and _kind(theirs) != _kind(own[key])
        ],
    }
    if any(wrong.values()):
        raise WeightsError(_mismatch(model.config.name, origin, wrong) + _which_model(state, model.config.name))
    state = {key: state[key].detach().to(value.dtype) for key, value in own.items()}
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        kind = state[broken[0]].dtype
        raise WeightsError(f"{origin}: values NaN, infinite or too large for {kind} in {_enumerate(broken)}")
    negative = [key for key, value in state.items() if key.endswith("running_var") and (value < 0).any()]
    if negative:
        raise WeightsError(f"{origin}: negative variances in {_enumerate(negative)}")
    model.load_state_dict(state, strict=True)


def _fit_head(model: HarDNet, state: StateDict, origin: str) -> None:
    """Where the numbers of classes differ, put the model's own head into the state dict."""
    classes = head_classes(state, model.config, origin)
    if classes is None or classes == model.num_classes:
        return
    head = f"base.{head_index(model.config)}."
    for key in [key for key in state if key.startswith(head)]:
        del state[key]
    state.update({key: value for key, value in model.state_dict().items() if key.startswith(head)})
    outcome = "the head is new and untrained" if model.num_classes else "the head is left out"
    logger.info("%s: %d classes in the weights, %d in the model: %s", origin, classes, model.num_classes, outcome)


def _kind(value: Tensor) -> tuple[object, ...]:
    return value.is_floating_point(), value.layout, value.is_meta


def _mismatch(name: str, origin: str, wrong: dict[str, Iterable[str]]) -> str:
    kinds = {kind: sorted(found) for kind, found in wrong.items()}
    parts = [f"{len(found)} {kind} ({_enumerate(found)})" for kind, found in kinds.items() if found]
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
