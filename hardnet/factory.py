"""Build a model by name, with or without weights: ``create_model``, ``from_pretrained`` and a builder per variant."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Literal, TypedDict, overload

from typing_extensions import Unpack

from .models.config import FCHarDNetConfig
from .models.features import HarDNetFeatures
from .models.network import HarDNet
from .models.segmentation import FCHarDNet, build_network
from .utils.text import known_names
from .weights.catalog import DEFAULT, get_config
from .weights.download import Progress
from .weights.load import Source, build_pretrained, fill, load_weights


class ModelOptions(TypedDict, total=False):
    """Keywords of :func:`create_model` and of the builders."""

    weights: Source | None
    num_classes: int | None
    in_chans: int | None
    drop_rate: float | None
    progress: Progress
    use_ema: bool
    features_only: bool
    out_indices: Sequence[int] | None
    output_stride: int | None


# fmt: off
@overload
def create_model(  # type: ignore[overload-overlap]
    name: Literal["fchardnet70"], *, weights: Source | None = None, num_classes: int | None = None,
    in_chans: int | None = None, progress: Progress = True, use_ema: bool = True,
) -> FCHarDNet: ...
@overload
def create_model(
    name: str, *, weights: Source | None = None, num_classes: int | None = None, in_chans: int | None = None,
    drop_rate: float | None = None, progress: Progress = True, use_ema: bool = True,
    features_only: Literal[False] = False,
) -> HarDNet: ...
@overload
def create_model(
    name: str, *, weights: Source | None = None, in_chans: int | None = None, progress: Progress = True,
    use_ema: bool = True, features_only: Literal[True], out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
) -> HarDNetFeatures: ...
def create_model(
    name: str, *, weights: Source | None = None, num_classes: int | None = None, in_chans: int | None = None,
    drop_rate: float | None = None, progress: Progress = True, use_ema: bool = True, features_only: bool = False,
    out_indices: Sequence[int] | None = None, output_stride: int | None = None,
) -> HarDNet | HarDNetFeatures | FCHarDNet:
    # fmt: on
    """Build a model by name: (N, in_chans, H, W) -> (N, num_classes) logits, on the CPU, in training mode.

    With ``features_only``, (N, in_chans, H, W) -> a list of feature maps; see :class:`hardnet.HarDNetFeatures`.

    Args:
        name: one of :func:`list_models`, or "fchardnet70" (see :func:`fchardnet70`).
        weights: any source of :func:`hardnet.load_weights`: a tag of :func:`list_weights` or "DEFAULT", a
            record, a file, the folder of a training run or of ``save_pretrained``, or ``hf-hub:owner/name@revision``.
            None leaves the model randomly initialised.
        num_classes: width of the logits; None takes that of the weights and the names of their classes, or 1000
            without weights. A number says that the classes are yours: they have no names, and if it differs from that
            of the weights, the head is new and untrained. 0 leaves the linear layer out.
        in_chans: channels of the input; None takes those of the weights, or 3. With weights trained on three colours,
            the stem is adapted: one channel gets the sum over the colours, n channels repeat them, scaled by 3 / n.
        drop_rate: probability of dropout before the linear layer; None takes the variant's own.
        progress: show a progress bar for downloads on a terminal, or a function of the bytes received and their total.
        use_ema: prefer the averaged weights of a training checkpoint.
        features_only: build the feature pyramid and no head. The following two require it.
        out_indices: levels of the pyramid, 0 to 4 for the strides 2 to 32; None means (1, 2, 3, 4).
        output_stride: 32, 16 or 8: below 32, dilation in place of the last downsamplings; None means 32.

    Raises:
        ValueError: an unknown name or tag, a number out of range, or keywords that do not go together.
        WeightsError: the weights could not be downloaded, are damaged, or do not fit the model.
    """
    config = get_config(name)
    if isinstance(config, FCHarDNetConfig) and (features_only or drop_rate is not None):
        raise ValueError(f"features_only and drop_rate are for classifiers, not for {name}")
    if features_only and (num_classes is not None or drop_rate is not None):
        raise ValueError("num_classes and drop_rate belong to the head, which features_only=True leaves out")
    if not features_only and (out_indices is not None or output_stride is not None):
        raise ValueError("out_indices and output_stride require features_only=True")
    loaded = None if weights is None else load_weights(weights, model=name, progress=progress, use_ema=use_ema)
    if loaded is not None:
        config = loaded.config
    if in_chans is None:
        in_chans = 3 if loaded is None else loaded.in_chans
    model: HarDNet | HarDNetFeatures | FCHarDNet
    if features_only:
        indices = (1, 2, 3, 4) if out_indices is None else out_indices
        stride = 32 if output_stride is None else output_stride
        model = HarDNetFeatures(config, out_indices=indices, output_stride=stride, in_chans=in_chans)
    else:
        classes = loaded.num_classes if loaded is not None and num_classes is None else num_classes
        options = {"num_classes": classes, "drop_rate": drop_rate}
        given = {key: value for key, value in options.items() if value is not None}
        model = build_network(config, in_chans=in_chans, **given)
    if loaded is not None:
        fill(model, loaded)
        model.categories = loaded.categories if num_classes is None and not features_only else None
    return model


def fchardnet70(
    weights: Source | None = None, *, num_classes: int | None = None, in_chans: int | None = None
) -> FCHarDNet:
    """FC-HarDNet-70: segmentation, 19 classes without weights. Arguments: see :func:`create_model`."""
    return create_model("fchardnet70", weights=weights, num_classes=num_classes, in_chans=in_chans)


def from_pretrained(source: Source, *, revision: str | None = None, token: str | None = None) -> HarDNet:
    """Build the model that a source of weights holds, with its classes and preprocessing, in evaluation mode.

    Args:
        source: any source of :func:`hardnet.load_weights`, such as the folder of a training run or of
            ``HarDNet.save_pretrained``; or "owner/name" or "owner/name@revision" of the Hugging Face Hub.
        revision: of the repository: a branch, a tag or a commit.
        token: for private repositories; None takes that of ``hf auth login``.

    Raises:
        WeightsError: files are missing, could not be downloaded, are damaged, or contradict each other.
        ImportError: huggingface_hub or safetensors is not installed.
    """
    return build_pretrained(HarDNet, source, revision=revision, token=token)


def hardnet39ds(pretrained: bool = False, **options: Unpack[ModelOptions]) -> HarDNet:
    """HarDNet-39DS: 39 depthwise-separable layers, the smallest. Keywords: see :func:`create_model`."""
    return _build("hardnet39ds", pretrained, options)


def hardnet68ds(pretrained: bool = False, **options: Unpack[ModelOptions]) -> HarDNet:
    """HarDNet-68DS: 68 depthwise-separable layers. Keywords: see :func:`create_model`."""
    return _build("hardnet68ds", pretrained, options)


def hardnet68(pretrained: bool = False, **options: Unpack[ModelOptions]) -> HarDNet:
    """HarDNet-68: 68 layers of plain convolutions. Keywords: see :func:`create_model`."""
    return _build("hardnet68", pretrained, options)


def hardnet85(pretrained: bool = False, **options: Unpack[ModelOptions]) -> HarDNet:
    """HarDNet-85: 85 layers of plain convolutions, the largest. Keywords: see :func:`create_model`."""
    return _build("hardnet85", pretrained, options)


def _build(name: str, pretrained: bool, options: ModelOptions) -> HarDNet:
    for keyword in options:
        if keyword not in ModelOptions.__annotations__:
            keywords = known_names(keyword, ["pretrained", *ModelOptions.__annotations__])
            raise TypeError(f"{name}() got an unexpected keyword argument {keyword!r}; known: {keywords}")
    if pretrained and options.get("weights") is not None:
        raise ValueError('pretrained=True means weights="DEFAULT": give one of the two, not both')
    if pretrained:
        options = {**options, "weights": DEFAULT}
    model: HarDNet = create_model(name, **options)  # type: ignore[call-overload]
    return model


for _builder in (hardnet39ds, hardnet68ds, hardnet68, hardnet85):
    # help(), torch.hub.help() and notebooks show the keywords, as editors do.
    _create = inspect.signature(create_model)
    _pretrained = inspect.signature(_builder).parameters["pretrained"]
    _builder.__signature__ = _create.replace(parameters=[_pretrained, *list(_create.parameters.values())[1:]])  # type: ignore[attr-defined]
    _keywords = (create_model.__doc__ or "").partition("        weights: ")[2]
    _default = 'Args:\n        pretrained: the same as ``weights="DEFAULT"``.'
    _builder.__doc__ = f"{_builder.__doc__}\n\n    {_default}\n        weights: {_keywords}"
