"""Build a model by name, with or without weights: ``create_model``, ``from_pretrained`` and a builder per variant."""

import inspect
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, overload

from typing_extensions import Unpack

from .models.features import HarDNetFeatures
from .models.network import HarDNet
from .models.segmentation import FCHarDNet
from .utils.text import known_names
from .weights.catalog import DEFAULT, get_config
from .weights.download import Progress
from .weights.load import Source, fill, load_weights

from_pretrained = HarDNet.from_pretrained


class ModelOptions(TypedDict, total=False):
    """Keywords of :func:`create_model`, in addition to ``features_only``."""

    weights: Source | None
    num_classes: int | None
    in_chans: int | None
    drop_rate: float | None
    progress: Progress
    use_ema: bool
    out_indices: Sequence[int] | None
    output_stride: int | None


class BuilderOptions(ModelOptions, total=False):
    """Keywords of the builders."""

    features_only: bool


@overload
def create_model(name: Literal["fchardnet70"], **options: Unpack[ModelOptions]) -> FCHarDNet: ...  # type: ignore[overload-overlap]
@overload
def create_model(name: str, *, features_only: Literal[True], **options: Unpack[ModelOptions]) -> HarDNetFeatures: ...
@overload
def create_model(name: str, *, features_only: Literal[False] = False, **options: Unpack[ModelOptions]) -> HarDNet: ...
def create_model(
    name: str, *, weights: Source | None = None, num_classes: int | None = None, in_chans: int | None = None,
    drop_rate: float | None = None, progress: Progress = True, use_ema: bool = True, features_only: bool = False,
    out_indices: Sequence[int] | None = None, output_stride: int | None = None,
) -> HarDNet | HarDNetFeatures | FCHarDNet:  # fmt: skip
    """Build a model by name: (N, in_chans, H, W) -> (N, num_classes) logits, on the CPU, in training mode.

    With ``features_only``, (N, in_chans, H, W) -> a list of feature maps; see :class:`hardnet.HarDNetFeatures`.

    Args:
        name: one of :func:`list_models`, or "fchardnet70" (see :func:`fchardnet70`).
        weights: any source of :func:`hardnet.load_weights`, such as a tag of :func:`list_weights`, "DEFAULT", or the
            path of a file or folder. None leaves the model randomly initialised.
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
    if config.decoder and features_only:
        raise ValueError(f"{name} has no feature pyramid: features_only=True is for classifiers")
    classifier = HarDNetFeatures if features_only else HarDNet
    network: type[HarDNet | HarDNetFeatures | FCHarDNet] = FCHarDNet if config.decoder else classifier
    options: dict[str, Any] = {"in_chans": in_chans, "num_classes": num_classes, "drop_rate": drop_rate}
    options |= {"out_indices": out_indices, "output_stride": output_stride}
    arguments = {key: value for key, value in options.items() if value is not None}
    if foreign := ", ".join(key for key in arguments if key not in inspect.signature(network).parameters):
        raise ValueError(f"{network.__name__} does not take {foreign}; features_only=True builds HarDNetFeatures")
    if weights is None:
        return network(config, **arguments)
    loaded = load_weights(weights, model=name, progress=progress, use_ema=use_ema)
    if loaded.num_classes is not None and not features_only:
        arguments.setdefault("num_classes", loaded.num_classes)
    model = network(loaded.config, **{"in_chans": loaded.in_chans} | arguments)
    fill(model, loaded)
    model.categories = loaded.categories if num_classes is None and not features_only else None
    return model


def fchardnet70(
    weights: Source | None = None, *, num_classes: int | None = None, in_chans: int | None = None
) -> FCHarDNet:
    """FC-HarDNet-70: segmentation, 19 classes without weights. Arguments: see :func:`create_model`."""
    return create_model("fchardnet70", weights=weights, num_classes=num_classes, in_chans=in_chans)


def hardnet39ds(pretrained: bool = False, **options: Unpack[BuilderOptions]) -> HarDNet:
    """HarDNet-39DS: 39 depthwise-separable layers, the smallest. Keywords: see :func:`create_model`."""
    return _build("hardnet39ds", pretrained, options)


def hardnet68ds(pretrained: bool = False, **options: Unpack[BuilderOptions]) -> HarDNet:
    """HarDNet-68DS: 68 depthwise-separable layers. Keywords: see :func:`create_model`."""
    return _build("hardnet68ds", pretrained, options)


def hardnet68(pretrained: bool = False, **options: Unpack[BuilderOptions]) -> HarDNet:
    """HarDNet-68: 68 layers of plain convolutions. Keywords: see :func:`create_model`."""
    return _build("hardnet68", pretrained, options)


def hardnet85(pretrained: bool = False, **options: Unpack[BuilderOptions]) -> HarDNet:
    """HarDNet-85: 85 layers of plain convolutions, the largest. Keywords: see :func:`create_model`."""
    return _build("hardnet85", pretrained, options)


def _build(name: str, pretrained: bool, options: BuilderOptions) -> HarDNet:
    keywords = list(inspect.signature(create_model).parameters)[1:]
    for key in options.keys() - set(keywords):
        names = known_names(key, ["pretrained", *keywords])
        raise TypeError(f"{name}() got an unexpected keyword argument {key!r}; known: {names}")
    if pretrained and options.get("weights") is not None:
        raise ValueError('pretrained=True means weights="DEFAULT": give one of the two, not both')
    if pretrained:
        options = {**options, "weights": DEFAULT}
    model: HarDNet = create_model(name, **options)  # type: ignore[call-overload]
    return model


for _builder in (hardnet39ds, hardnet68ds, hardnet68, hardnet85):
    # help(), torch.hub.help() and notebooks show the keywords, as editors do.
    _create, _parameters = inspect.signature(create_model), [inspect.signature(_builder).parameters["pretrained"]]
    _parameters += list(_create.parameters.values())[1:]
    _builder.__signature__ = _create.replace(parameters=_parameters)  # type: ignore[attr-defined]
    _keywords = (inspect.getdoc(create_model) or "").partition("    weights: ")[2]
    _default = 'pretrained: the same as ``weights="DEFAULT"``.'
    _builder.__doc__ = f"{_builder.__doc__}\n\nArgs:\n    {_default}\n    weights: {_keywords}"
