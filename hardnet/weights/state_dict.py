"""Turn the content of a checkpoint file into a state dict that fits the model.

Unwraps what training scripts write, renames imgclsmob's keys, adapts stem and head, loads strictly.
"""

import functools
import logging
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..models.config import NETWORKS, HarDNetConfig, head_index, stage_indices
from ..models.features import HarDNetFeatures
from ..models.network import HarDNet
from ..models.segmentation import FCHarDNet, build_network
from ..utils.errors import WeightsError
from ..utils.text import printable

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

WRAPPERS = ("state_dict", "model", "model_state")
"""Entries under which training scripts store the state dict."""
AVERAGED = ("state_dict_ema", "model_ema")
"""Entries under which they store the moving average of the weights."""

_STEM_KEY = "base.0.conv.weight"
_STEM_KEYS = (_STEM_KEY, "features.init_block.conv1.conv.weight")
"""The first convolution in the original's naming and in imgclsmob's."""
_IMGCLSMOB_NAMES = {"norm.": "bn.", "dwconv.": "conv.", "layer1.": "pw_conv.", "layer2.": "dw_conv."}
"""Parts of the original's keys within an entry of ``base``, and what imgclsmob has in their place."""
_COUNTER = "num_batches_tracked"
_COLOURS = 3
_MAX_NAMES = 4


def find_state(content: Any, *, use_ema: bool = True) -> StateDict:
    """Return the state dict in a file's content, without prefixes that all its keys share.

    ``content`` is a state dict, or a training checkpoint with one: under an entry of a usual name, or under another
    one if it is the only state dict in the file. ``use_ema`` prefers the moving average.
    """
    if not isinstance(content, dict):
        raise WeightsError(f"holds an object of type {type(content).__name__}; expected a state dict")
    if _is_state(content):
        return _strip_prefix(content)
    states = {str(name): entry for name, entry in content.items() if _is_state(entry)}
    usual = [name for name in ((*AVERAGED, *WRAPPERS) if use_ema else WRAPPERS) if name in states]
    names = usual or [name for name in states if use_ema or name not in AVERAGED]
    if usual or len(names) == 1:
        logger.info("weights of the entry %r", names[0])
        return _strip_prefix(states[names[0]])
    if names:
        raise WeightsError(f"has several state dicts, under {_enumerate(names)}: save one alone, with torch.save")
    holds = "has the entries " + _enumerate([str(key) for key in content]) if content else "is empty"
    raise WeightsError(f"{holds}; expected a state dict, or an entry with one, such as {WRAPPERS[0]!r}")


def _is_state(entry: object) -> bool:
    return isinstance(entry, dict) and bool(entry) and all(isinstance(value, Tensor) for value in entry.values())


def _strip_prefix(content: dict[Any, Tensor]) -> StateDict:
    """Remove what stands before the network's own keys, such as ``module.``, and the counter of an AveragedModel."""
    state = {str(key): value for key, value in content.items() if key != "n_averaged"}
    prefixes = [key.removesuffix(stem) for key in state for stem in _STEM_KEYS if f".{key}".endswith(f".{stem}")]
    if len(prefixes) != 1:
        return state
    [prefix] = prefixes
    others = [key for key in state if not key.startswith(prefix)]
    if others:
        outside = f"{len(others)} entries outside the network, which is under {prefix!r}"
        raise WeightsError(f"has {outside} ({_enumerate(others)}): save the network's state dict alone")
    if prefix:
        logger.info("the prefix %r is removed from the keys", prefix)
    return {key.removeprefix(prefix): value for key, value in state.items()}


def rename_imgclsmob(state: StateDict, config: HarDNetConfig) -> StateDict:
    """Give the entries of imgclsmob (pytorchcv) the original implementation's keys; keep those of other keys."""
    if config.decoder or not any(key.startswith("features.") for key in state):
        return state
    names = {imgclsmob_key(key, config): key for key in _expected_shapes(config)}
    renamed = {names.get(key, key): value for key, value in state.items()}
    return renamed if len(renamed) == len(state) else state  # no entry replaces another one


def identify_model(state: StateDict) -> str | None:
    """Return the name of the variant with these keys and channel counts, whatever its classes; None if none has."""
    for name, config in NETWORKS.items():
        shapes, renamed = _expected_shapes(config), rename_imgclsmob(state, config)
        body = [key for key in shapes if not key.startswith(config.head) and not key.endswith(_COUNTER)]
        if all(key in renamed and renamed[key].shape[:1] == shapes[key][:1] for key in body):
            return name
    return None


def imgclsmob_key(key: str, config: HarDNetConfig) -> str:
    """Return imgclsmob's name for one key of the original's state dict.

    >>> imgclsmob_key("base.3.layers.0.norm.bias", CONFIGS["hardnet68"])
    'features.stage1.unit1.blocks.block1.bn.bias'
    """
    _, index, rest = key.split(".", 2)
    for original, name in _IMGCLSMOB_NAMES.items():
        rest = rest.replace(original, name)
    rest = re.sub(r"^layers\.(\d+)", lambda match: f"block{int(match[1]) + 1}", rest)
    return f"{_imgclsmob_modules(config)[int(index)]}.{rest.removeprefix('3.')}"  # 3: the linear layer of the head


@functools.cache
def _imgclsmob_modules(config: HarDNetConfig) -> dict[int | None, str]:
    """Name the entries of ``base``. A stage of imgclsmob ends with each downsampling; its units are our stages."""
    stem = ("conv1", "conv2", "downsample")
    modules: dict[int | None, str] = {number: f"features.init_block.{name}" for number, name in enumerate(stem)}
    modules[head_index(config)] = "output.fc"
    stage = unit = 1
    for block, transition, downsample in stage_indices(config):
        name = f"features.stage{stage}.unit{unit}"
        modules |= {block: f"{name}.blocks", transition: f"{name}.conv", downsample: f"{name}.downsample"}
        stage, unit = (stage, unit + 1) if downsample is None else (stage + 1, 1)
    return modules


@functools.cache
def _expected_shapes(config: HarDNetConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in build_network(config).state_dict().items()}


def adapt_stem(weight: Tensor, in_chans: int) -> Tensor:
    """Adapt a stem trained on three colours: (C, 3, k, k) -> (C, in_chans, k, k).

    One channel gets the sum over the colours, so that a grey image gives the same output as three equal
    colours. More channels repeat the colours in turn, scaled by 3 / in_chans to keep the activations' size.
    """
    if in_chans == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-in_chans // _COLOURS)
    return weight.repeat(1, repeats, 1, 1)[:, :in_chans] * (_COLOURS / in_chans)


def head_classes(state: StateDict, config: HarDNetConfig) -> int | None:
    """Return the number of classes of a state dict's last layer; None if it has none."""
    weight = state.get(f"{config.head}.weight")
    if weight is None or weight.dim() not in (2, 4):
        return None
    if not weight.shape[0]:
        raise WeightsError("has a head with 0 classes")
    return weight.shape[0]


def stem_channels(state: StateDict) -> int | None:
    """Return the input channels of a state dict's first convolution; None if it has none."""
    weight = state.get(_STEM_KEY)
    return None if weight is None or weight.dim() != 4 or not weight.shape[1] else weight.shape[1]


def load_state(model: HarDNet | HarDNetFeatures | FCHarDNet, state: StateDict) -> None:
    """Load a state dict strictly, except for a head of other classes and a stem of other channels.

    With other classes the model keeps its new head, and a log line says so; a stem trained on three colours is adapted
    (see :func:`adapt_stem`). A feature pyramid leaves out what it has not built. Counters of batches that are missing,
    as in files of PyTorch before 0.4.1 or of frozen normalisation, are 0, as PyTorch has it. All is checked before the
    first parameter changes.

    Raises:
        WeightsError: keys are missing or unknown, shapes differ, or values are not finite in the model's type or
            variances negative; the model is unchanged.
    """
    expected = model.state_dict()
    if isinstance(model, HarDNetFeatures):
        unused = _expected_shapes(model.config).keys() - expected.keys()
        state = {key: value for key, value in state.items() if key not in unused}
    else:
        state = _with_head_of(model, state)
    if stem_channels(state) == _COLOURS != model.in_chans:
        state = state | {_STEM_KEY: adapt_stem(state[_STEM_KEY], model.in_chans)}
        logger.info("stem adapted from %d to %d channels", _COLOURS, model.in_chans)
    state = {key: torch.zeros_like(value) for key, value in expected.items() if key.endswith(_COUNTER)} | state
    pairs = [(key, value, expected[key]) for key, value in state.items() if key in expected]
    wrong: dict[str, Iterable[str]] = {
        "missing keys": expected.keys() - state.keys(),
        "unknown keys": state.keys() - expected.keys(),
        "other shapes": [
            f"{key} {tuple(value.shape)} in the file, {tuple(other.shape)} in the model"
            for key, value, other in pairs
            if value.shape != other.shape
        ],
        "other types": [f"{key} {_kind(value)}" for key, value, other in pairs if _kind(value) != _kind(other)],
    }
    if any(wrong.values()):
        name = identify_model(state)
        advice = f". It looks like a checkpoint of {name}" if name not in (None, model.config.name) else ""
        raise WeightsError(_mismatch(model.config.name, wrong) + advice)
    state = {key: state[key].detach().to(value.dtype) for key, value in expected.items()}
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise WeightsError(f"values NaN, infinite or too large for {state[broken[0]].dtype} in {_enumerate(broken)}")
    negative = [key for key, value in state.items() if key.endswith("running_var") and (value < 0).any()]
    if negative:
        raise WeightsError(f"negative variances in {_enumerate(negative)}")
    model.load_state_dict(state, strict=True)


def _with_head_of(model: HarDNet | FCHarDNet, state: StateDict) -> StateDict:
    """Put the model's own head into a state dict of another number of classes."""
    classes, head = head_classes(state, model.config), model.config.head + "."
    if classes in (None, model.num_classes):
        return state
    outcome = "the head is new and untrained" if model.num_classes else "the head is left out"
    logger.info("%d classes in the weights, %d in the model: %s", classes, model.num_classes, outcome)
    body = {key: value for key, value in state.items() if not key.startswith(head)}
    return body | {key: value for key, value in model.state_dict().items() if key.startswith(head)}


def _kind(value: Tensor) -> str:
    number = "float" if value.is_floating_point() else str(value.dtype)
    return f"{number}, {value.layout}{', on meta' if value.is_meta else ''}"


def _mismatch(name: str, wrong: dict[str, Iterable[str]]) -> str:
    parts = [f"{len(sorted(keys))} {kind} ({_enumerate(sorted(keys))})" for kind, keys in wrong.items() if keys]
    return f"does not fit {name}: {'; '.join(parts)}"


def _enumerate(names: list[str]) -> str:
    # Names come from the file: they need not be short, nor text that can be shown.
    text = ", ".join(printable(name[:100]) for name in names[:_MAX_NAMES])
    return text if len(names) <= _MAX_NAMES else f"{text} and {len(names) - _MAX_NAMES} more"
