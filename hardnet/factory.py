"""config + checkpoint -> model: ``create_model``, the lists, and a builder per variant."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast, overload

from .models.config import CONFIGS, HarDNetConfig
from .models.features import HarDNetFeatures
from .models.network import HarDNet
from .utils.errors import WeightsError
from .weights.catalog import CATALOG, WeightsRecord
from .weights.checkpoint import StateDict, find_state, head_classes, load_state, parse_checkpoint
from .weights.file_record import find_file_record
from .weights.reading import deserialise, read_file

logger = logging.getLogger(__name__)

WeightsLike = str | os.PathLike[str] | WeightsRecord
DEFAULT_TAG = "IMAGENET1K_V1"
DEFAULT_CLASSES = 1000


def list_models() -> list[str]:
    """Return the names of the models."""
    return list(CONFIGS)


def list_weights(name: str) -> list[str]:
    """Return the tags of the weights that are known for a model.

    Raises:
        ValueError: there is no such model.
    """
    _config(name)
    return [tag for model, tag in CATALOG if model == name]


def get_weights(name: str, tag: str) -> WeightsRecord:
    """Return the record of one checkpoint: its sources, digests, classes, preprocessing and reported errors.

    Raises:
        ValueError: there is no such model, or the model has no such weights.
    """
    tags = list_weights(name)
    if tag not in tags:
        raise ValueError(f"{name} has no weights {tag!r}; known: {_known(tag, tags)}")
    return CATALOG[name, tag]


@overload
def create_model(
    name: str,
    *,
    weights: WeightsLike | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    drop_rate: float | None = None,
    progress: bool = True,
    features_only: Literal[False] = False,
) -> HarDNet: ...


@overload
def create_model(
    name: str,
    *,
    weights: WeightsLike | None = None,
    in_chans: int = 3,
    progress: bool = True,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
) -> HarDNetFeatures: ...


def create_model(
    name: str,
    *,
    weights: WeightsLike | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    drop_rate: float | None = None,
    progress: bool = True,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
) -> HarDNet | HarDNetFeatures:
    """Build a model by name: (N, in_chans, H, W) -> (N, num_classes) logits, on the CPU, in training mode.

    With ``features_only``, (N, in_chans, H, W) -> a list of feature maps; see :class:`hardnet.HarDNetFeatures`.

    Args:
        name: one of :func:`list_models`.
        weights: a tag of :func:`list_weights`, a record of :func:`get_weights`, or the path of a local file:
            ``.pth``/``.pt`` (a state dict, or a training checkpoint that holds one under ``state_dict``, ``model`` or
            ``model_state``), ``.safetensors``, or a release archive ``.pth.zip``. None leaves the model randomly
            initialised.
        num_classes: width of the logits; None takes that of the weights, or 1000 without weights. Another number than
            the weights' makes the head new, and a log line says so; 0 leaves the linear layer out.
        in_chans: channels of the input. With weights trained on three colours, the stem is adapted: one channel gets
            the sum over the colours, n channels repeat them, scaled by 3 / n.
        drop_rate: probability of dropout before the linear layer; None takes the variant's own.
        progress: show a progress bar for downloads, on a terminal.
        features_only: build the feature pyramid and no head. The following two go with it.
        out_indices: levels of the pyramid, 0 to 4 for the strides 2 to 32; None means (1, 2, 3, 4).
        output_stride: 32, 16 or 8: below 32, dilation in place of the last downsamplings; None means 32.

    Raises:
        ValueError: an unknown name or tag, a number out of range, or keywords that do not go together.
        WeightsError: the weights could not be had, are damaged, or do not fit the model.
    """
    config = _config(name)
    if features_only and (num_classes is not None or drop_rate is not None):
        raise ValueError("num_classes and drop_rate belong to the head, which features_only=True leaves out")
    if not features_only and (out_indices is not None or output_stride is not None):
        raise ValueError("out_indices and output_stride go with features_only=True")
    state, record, origin = (None, None, "") if weights is None else _load(config, weights, progress)
    if isinstance(record, WeightsRecord):
        config = replace(config, block_activation=record.block_activation)
    model: HarDNet | HarDNetFeatures
    if features_only:
        model = HarDNetFeatures(
            config,
            out_indices=(1, 2, 3, 4) if out_indices is None else out_indices,
            output_stride=32 if output_stride is None else output_stride,
            in_chans=in_chans,
        )
    else:
        if num_classes is None:
            num_classes = (state and head_classes(state, config)) or DEFAULT_CLASSES
        model = HarDNet(config, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate)
    if state is not None:
        load_state(model, state, origin)
        model.weights_record = record
    return model


def _load(config: HarDNetConfig, weights: WeightsLike, progress: bool) -> tuple[StateDict, WeightsRecord | None, str]:
    """Return the state dict, its record where there is one, and a name for messages."""
    from .weights import download

    record = _as_record(config.name, weights)
    if record is not None:
        verified = download.fetch(record, progress=progress)
        return parse_checkpoint(verified.content, str(verified.path), config), record, str(record)
    assert not isinstance(weights, WeightsRecord)  # noqa: S101 (for the type checker: _as_record returns records)
    path = os.fspath(weights)
    content = read_file(path)
    if path.lower().endswith(".zip"):
        content = download.unpack_archive(content)
    known = download.identify(content, CATALOG.values())
    if known is not None:
        record = known[0]
        if record.model != config.name:
            raise WeightsError(f"{path} is {record}, it does not fit {config.name}")
        logger.info("%s is %s", path, record)
        return parse_checkpoint(content, path, config), record, path
    loaded = deserialise(content, path)
    return find_state(loaded, path, config), find_file_record(loaded, path, config.name), path


def _as_record(name: str, weights: WeightsLike) -> WeightsRecord | None:
    """Return the record that ``weights`` means, or None where it is the path of a file."""
    if isinstance(weights, WeightsRecord):
        if weights.model != name:
            raise ValueError(f"the weights {weights} are not for {name}")
        return weights
    if not isinstance(weights, (str, os.PathLike)):
        raise TypeError(f"weights must be a tag, a record or the path of a file, got {type(weights).__name__}")
    tags = list_weights(name)
    if isinstance(weights, str):
        if weights in tags:
            return CATALOG[name, weights]
        path = Path(weights)
        if not path.suffix and path.name == weights and not path.exists():
            raise ValueError(
                f"{name} has no weights {weights!r}; known: {_known(weights, tags)}; nor is there such a file"
            )
    return None


def _config(name: str) -> HarDNetConfig:
    try:
        return CONFIGS[name]
    except (KeyError, TypeError):
        raise ValueError(f"there is no model {name!r}; known: {_known(str(name), CONFIGS)}") from None


def _known(wrong: str, names: Iterable[str]) -> str:
    """List what is known, and the nearest spelling where there is one."""
    by_key = {_spelling(name): name for name in names}
    near = difflib.get_close_matches(_spelling(wrong), by_key, n=1)
    return ", ".join(by_key.values()) + (f" (did you mean {by_key[near[0]]!r}?)" if near else "")


def _spelling(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


class Builder(Protocol):
    """The signature that the four builders share; see :func:`create_model` for the keywords."""

    @overload
    def __call__(
        self,
        pretrained: bool = False,
        *,
        weights: WeightsLike | None = None,
        num_classes: int | None = None,
        in_chans: int = 3,
        drop_rate: float | None = None,
        progress: bool = True,
        features_only: Literal[False] = False,
    ) -> HarDNet: ...

    @overload
    def __call__(
        self,
        pretrained: bool = False,
        *,
        weights: WeightsLike | None = None,
        in_chans: int = 3,
        progress: bool = True,
        features_only: Literal[True],
        out_indices: Sequence[int] | None = None,
        output_stride: int | None = None,
    ) -> HarDNetFeatures: ...


def _builder(name: str, what: str) -> Builder:
    """Make the builder of one variant: ``create_model`` with the name filled in and ``pretrained`` put first."""

    def build(pretrained: bool = False, **keywords: Any) -> HarDNet | HarDNetFeatures:
        if pretrained:
            if keywords.get("weights") is not None:
                raise ValueError(f"pretrained=True means weights={DEFAULT_TAG!r}: give one of the two, not both")
            keywords["weights"] = DEFAULT_TAG
        model: HarDNet | HarDNetFeatures = create_model(name, **keywords)
        return model

    # What help() and torch.hub.help show, and what a wrong keyword is measured by.
    own = inspect.signature(build)
    pretrained = own.parameters["pretrained"]
    others = [p for p in inspect.signature(create_model).parameters.values() if p.name != "name"]
    build.__signature__ = own.replace(parameters=[pretrained, *others])  # type: ignore[attr-defined]  # PEP 362
    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""{what}

    Takes images (N, in_chans, H, W), H and W from 32 pixels up, and gives logits (N, num_classes). Images for
    the ImageNet weights: RGB in [0, 1], resized to 256, centre-cropped to 224, normalised with mean
    (0.485, 0.456, 0.406) and standard deviation (0.229, 0.224, 0.225).

    Args:
        pretrained: True loads the weights {DEFAULT_TAG}.
        weights: a tag ({", ".join(list_weights(name))}) or the path of a local checkpoint; None, and no
            pretrained, leaves the model randomly initialised.
        num_classes: width of the logits; None takes the weights' own, or 1000. Another number makes the head new,
            0 leaves it out.
        in_chans: channels of the input; a pretrained stem is adapted.
        drop_rate: dropout before the linear layer; None takes the variant's own, {CONFIGS[name].drop_rate}.
        progress: show a progress bar for downloads, on a terminal.
        features_only: give a list of feature maps in place of logits, for detection or segmentation.
        out_indices: with it, levels of the pyramid: 0 to 4 for the strides 2 to 32; None means (1, 2, 3, 4).
        output_stride: with it, 32, 16 or 8: dilation in place of the last downsamplings; None means 32.

    Raises:
        ValueError: an unknown tag or a number out of range.
        WeightsError: the weights could not be had, are damaged, or do not fit.

    Source: Chao et al., "HarDNet: A Low Memory Traffic Network", ICCV 2019, https://arxiv.org/abs/1909.00948
    """
    return cast(Builder, build)


hardnet39ds = _builder("hardnet39ds", "HarDNet-39DS: 39 layers, depthwise-separable; the smallest.")
hardnet68ds = _builder("hardnet68ds", "HarDNet-68DS: 68 layers, depthwise-separable.")
hardnet68 = _builder("hardnet68", "HarDNet-68: 68 layers of plain convolutions.")
hardnet85 = _builder("hardnet85", "HarDNet-85: 85 layers of plain convolutions; the largest.")
