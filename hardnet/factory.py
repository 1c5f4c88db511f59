"""Build a model by name and load its weights: ``create_model``, the lists, and one builder per variant."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast, overload

from .models.config import HarDNetConfig
from .models.features import HarDNetFeatures
from .models.network import HarDNet
from .utils.errors import WeightsError
from .utils.text import known_names
from .weights.catalog import CATALOG, DEFAULT_TAG, WeightsRecord, get_config, identify, list_weights
from .weights.files import deserialise, read_file, unpack_archive
from .weights.folder import build_pretrained, is_pretrained, read_pretrained
from .weights.state_dict import StateDict, find_record, find_state, head_classes, load_state

logger = logging.getLogger(__name__)

WeightsLike = str | os.PathLike[str] | WeightsRecord
DEFAULT_CLASSES = 1000


# fmt: off
@overload
def create_model(
    name: str, *, weights: WeightsLike | None = None, num_classes: int | None = None, in_chans: int = 3,
    drop_rate: float | None = None, progress: bool = True, use_ema: bool = True,
    features_only: Literal[False] = False,
) -> HarDNet: ...
@overload
def create_model(
    name: str, *, weights: WeightsLike | None = None, in_chans: int = 3, progress: bool = True, use_ema: bool = True,
    features_only: Literal[True], out_indices: Sequence[int] | None = None, output_stride: int | None = None,
) -> HarDNetFeatures: ...
def create_model(
    name: str, *, weights: WeightsLike | None = None, num_classes: int | None = None, in_chans: int = 3,
    drop_rate: float | None = None, progress: bool = True, use_ema: bool = True, features_only: bool = False,
    out_indices: Sequence[int] | None = None, output_stride: int | None = None,
) -> HarDNet | HarDNetFeatures:
    # fmt: on
    """Build a model by name: (N, in_chans, H, W) -> (N, num_classes) logits, on the CPU, in training mode.

    With ``features_only``, (N, in_chans, H, W) -> a list of feature maps; see :class:`hardnet.HarDNetFeatures`.

    Args:
        name: one of :func:`list_models`.
        weights: a tag of :func:`list_weights`, a record of :func:`get_weights`, or the path of a local file:
            ``.pth``/``.pt`` (a state dict, or a training checkpoint with an entry ``state_dict``, ``model`` or
            ``model_state``), ``.safetensors``, or a release archive ``.pth.zip``; or a folder of
            ``HarDNet.save_pretrained``, or ``hf-hub:owner/name@revision``. None leaves the model randomly initialised.
        num_classes: width of the logits; None takes that of the weights, or 1000 without weights. If it differs from
            the weights', the head is new and untrained, and a log line says so; 0 leaves the linear layer out.
        in_chans: channels of the input. With weights trained on three colours, the stem is adapted: one channel gets
            the sum over the colours, n channels repeat them, scaled by 3 / n.
        drop_rate: probability of dropout before the linear layer; None takes the variant's own.
        progress: show a progress bar for downloads, on a terminal.
        use_ema: take the averaged weights (``state_dict_ema`` or ``model_ema``) where a training checkpoint has them.
        features_only: build the feature pyramid and no head. The following two require it.
        out_indices: levels of the pyramid, 0 to 4 for the strides 2 to 32; None means (1, 2, 3, 4).
        output_stride: 32, 16 or 8: below 32, dilation in place of the last downsamplings; None means 32.

    Raises:
        ValueError: an unknown name or tag, a number out of range, or keywords that do not go together.
        WeightsError: the weights could not be downloaded, are damaged, or do not fit the model.
    """
    config = get_config(name)
    if features_only and (num_classes is not None or drop_rate is not None):
        raise ValueError("num_classes and drop_rate belong to the head, which features_only=True leaves out")
    if not features_only and (out_indices is not None or output_stride is not None):
        raise ValueError("out_indices and output_stride require features_only=True")
    state, record, origin = (None, None, "") if weights is None else _load(config, weights, progress, use_ema)
    if record is not None:
        config = replace(config, block_activation=record.block_activation)
    model: HarDNet | HarDNetFeatures
    if features_only:
        indices = (1, 2, 3, 4) if out_indices is None else out_indices
        stride = 32 if output_stride is None else output_stride
        model = HarDNetFeatures(config, out_indices=indices, output_stride=stride, in_chans=in_chans)
    else:
        own_classes = None if state is None else head_classes(state, config, origin)
        if num_classes is None:
            num_classes = own_classes or DEFAULT_CLASSES
        model = HarDNet(config, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate)
    if state is not None:
        load_state(model, state, origin)
        model.weights_record = record
    return model


def _load(
    config: HarDNetConfig, weights: WeightsLike, progress: bool, use_ema: bool
) -> tuple[StateDict, WeightsRecord | None, str]:
    """Return the state dict, its record if there is one, and a name for messages."""
    from .weights import download

    if not isinstance(weights, WeightsRecord) and (config.name, weights) not in CATALOG and is_pretrained(weights):
        found = read_pretrained(weights)
        if found.config.name != config.name:
            raise WeightsError(f"{weights} is {found.config.name}, it does not fit {config.name}")
        return found.state, found.record, str(weights)
    record = _find_record_of(config.name, weights)
    if record is not None:
        origin, content = str(record), download.fetch(record, progress=progress).content
    else:
        origin = os.fspath(cast(str, weights))
        content = read_file(origin)
        if origin.lower().endswith(".zip"):
            content = unpack_archive(content)
        known = identify(content, CATALOG.values())
        if known is not None:
            record = known[0]
            if record.model != config.name:
                raise WeightsError(f"{origin} is {record}, it does not fit {config.name}")
            logger.info("%s is %s", origin, record)
    loaded = deserialise(content, origin)
    state = find_state(loaded, origin, config, use_ema=use_ema)
    return state, record or find_record(loaded, origin, config.name), origin


def _find_record_of(name: str, weights: WeightsLike) -> WeightsRecord | None:
    """Return the record that ``weights`` denotes, or None if it is the path of a file."""
    if isinstance(weights, WeightsRecord):
        if weights.model != name:
            raise ValueError(f"the weights {weights} are not for {name}")
        return weights
    if not isinstance(weights, (str, os.PathLike)):
        raise TypeError(f"weights must be a tag, a record or the path of a file, got {type(weights).__name__}")
    if (name, weights) in CATALOG:
        return CATALOG[name, str(weights)]
    path = Path(weights)
    if isinstance(weights, str) and not path.suffix and path.name == weights and not path.exists():
        known = known_names(weights, list_weights(name))
        raise ValueError(f"{name} has no weights {weights!r}; known: {known}; nor is there such a file")
    return None


def from_pretrained(
    source: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
) -> HarDNet:
    """Build the model that a folder or a repository of the Hugging Face Hub holds, with its classes.

    Args:
        source: a folder of ``HarDNet.save_pretrained``, or "owner/name", or "owner/name@revision".
        revision: of the repository: a branch, a tag or a commit.
        token: for private repositories; None takes that of ``hf auth login``.

    Raises:
        WeightsError: the files are missing, could not be downloaded, are damaged, or contradict each other.
        ImportError: huggingface_hub or safetensors is not installed.
    """
    return build_pretrained(HarDNet, source, revision=revision, token=token)


# fmt: off
class Builder(Protocol):
    """The signature that the four builders share; see :func:`create_model` for the keywords."""

    @overload
    def __call__(
        self, pretrained: bool = False, *, weights: WeightsLike | None = None, num_classes: int | None = None,
        in_chans: int = 3, drop_rate: float | None = None, progress: bool = True, use_ema: bool = True,
        features_only: Literal[False] = False,
    ) -> HarDNet: ...
    @overload
    def __call__(
        self, pretrained: bool = False, *, weights: WeightsLike | None = None, in_chans: int = 3,
        progress: bool = True, use_ema: bool = True, features_only: Literal[True],
        out_indices: Sequence[int] | None = None, output_stride: int | None = None,
    ) -> HarDNetFeatures: ...


_DOCUMENTATION = """

    Takes images (N, in_chans, H, W), H and W of at least 32 pixels, and returns logits (N, num_classes). Images for
    the ImageNet weights: RGB in [0, 1], resized to 256, centre-cropped to 224, normalised with mean
    (0.485, 0.456, 0.406) and standard deviation (0.229, 0.224, 0.225).

    Args:
        pretrained: True loads the weights IMAGENET1K_V1.
        weights: a tag ({tags}) or the path of a local checkpoint; None, and no pretrained, leaves the model randomly
            initialised.
        num_classes: width of the logits; None takes the weights' own, or 1000.
        in_chans: channels of the input; a pretrained stem is adapted.
        drop_rate: dropout before the linear layer; None takes the variant's own.
        progress: show a progress bar for downloads, on a terminal.
        use_ema: prefer the averaged weights of a training checkpoint.
        features_only: return a list of feature maps instead of logits.
        out_indices: levels of the feature maps; None means (1, 2, 3, 4).
        output_stride: of the feature maps: 32, 16 or 8; None means 32.

    Raises:
        ValueError: an unknown tag or a number out of range.
        WeightsError: the weights could not be downloaded, are damaged, or do not fit.

    Source: Chao et al., "HarDNet: A Low Memory Traffic Network", ICCV 2019, https://arxiv.org/abs/1909.00948
    """


def _builder(build: Callable[..., HarDNet | HarDNetFeatures]) -> Builder:
    """Complete a builder's documentation; for an unknown keyword, suggest the nearest."""
    name, keywords = build.__name__, list(inspect.signature(build).parameters)

    @functools.wraps(build)
    def checked(*arguments: Any, **options: Any) -> HarDNet | HarDNetFeatures:
        for wrong in options.keys() - set(keywords):
            known = known_names(wrong, keywords)
            raise TypeError(f"{name}() got an unexpected keyword argument {wrong!r}; known: {known}")
        return build(*arguments, **options)

    checked.__doc__ = f"{build.__doc__}{_DOCUMENTATION.format(tags=', '.join(list_weights(name)))}"
    return cast(Builder, checked)


def _build(name: str, pretrained: bool, weights: WeightsLike | None, **options: Any) -> HarDNet | HarDNetFeatures:
    if pretrained and weights is not None:
        raise ValueError(f"pretrained=True means weights={DEFAULT_TAG!r}: give one of the two, not both")
    model: HarDNet | HarDNetFeatures = create_model(name, weights=DEFAULT_TAG if pretrained else weights, **options)
    return model


@_builder
def hardnet39ds(
    pretrained: bool = False, *, weights: WeightsLike | None = None, num_classes: int | None = None, in_chans: int = 3,
    drop_rate: float | None = None, progress: bool = True, use_ema: bool = True, features_only: bool = False,
    out_indices: Sequence[int] | None = None, output_stride: int | None = None,
) -> HarDNet | HarDNetFeatures:
    """HarDNet-39DS: 39 layers, depthwise-separable; the smallest."""
    return _build("hardnet39ds", **locals())


@_builder
def hardnet68ds(
    pretrained: bool = False, *, weights: WeightsLike | None = None, num_classes: int | None = None, in_chans: int = 3,
    drop_rate: float | None = None, progress: bool = True, use_ema: bool = True, features_only: bool = False,
    out_indices: Sequence[int] | None = None, output_stride: int | None = None,
) -> HarDNet | HarDNetFeatures:
    """HarDNet-68DS: 68 layers, depthwise-separable."""
    return _build("hardnet68ds", **locals())


@_builder
def hardnet68(
    pretrained: bool = False, *, weights: WeightsLike | None = None, num_classes: int | None = None, in_chans: int = 3,
    drop_rate: float | None = None, progress: bool = True, use_ema: bool = True, features_only: bool = False,
    out_indices: Sequence[int] | None = None, output_stride: int | None = None,
) -> HarDNet | HarDNetFeatures:
    """HarDNet-68: 68 layers of plain convolutions."""
    return _build("hardnet68", **locals())


@_builder
def hardnet85(
    pretrained: bool = False, *, weights: WeightsLike | None = None, num_classes: int | None = None, in_chans: int = 3,
    drop_rate: float | None = None, progress: bool = True, use_ema: bool = True, features_only: bool = False,
    out_indices: Sequence[int] | None = None, output_stride: int | None = None,
) -> HarDNet | HarDNetFeatures:
    """HarDNet-85: 85 layers of plain convolutions; the largest."""
    return _build("hardnet85", **locals())
