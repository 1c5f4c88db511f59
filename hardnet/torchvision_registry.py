"""HarDNet in torchvision: importing this module registers the four models there.

>>> import torchvision, hardnet.torchvision_registry
>>> model = torchvision.models.get_model("hardnet68", weights=None, num_classes=10)

Weights come through this library's verified loader. Of a model's weights, ``DEFAULT`` means ``IMAGENET1K_V1``, as
everywhere in this library.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from .factory import create_model
from .models.config import CONFIGS
from .models.cost import measure_cost
from .models.features import HarDNetFeatures
from .models.network import MIN_INPUT_SIZE
from .utils.optional import require
from .weights.catalog import CATALOG, DEFAULT, DEFAULT_TAG, IMAGENET, PACKAGE, WeightsRecord, list_weights
from .weights.load import load_weights

LOWEST_TORCHVISION = "0.21"

_RECIPES = {"PingoLH": "https://github.com/PingoLH/Pytorch-HarDNet", "imgclsmob": "https://github.com/osmr/imgclsmob"}
"""Training code of the weights, by a part of their provenance."""

require("torchvision", LOWEST_TORCHVISION)

# torchvision's public API lists and builds models; they are registered through this module.
from torchvision.models import _api  # type: ignore[import-untyped]  # noqa: E402  (after the check of the version)
from torchvision.transforms._presets import ImageClassification  # type: ignore[import-untyped]  # noqa: E402


class HarDNetWeights(_api.WeightsEnum):  # type: ignore[misc]  # torchvision has no types
    """Weights in torchvision's manner, one enumeration per model, such as ``HarDNet68_Weights``.

    ``meta["record"]`` is the catalogue's record: sources with their digests, provenance, errors and who reported them.
    """

    def get_state_dict(self, progress: bool = True, **_: Any) -> dict[str, torch.Tensor]:
        """Fetch the weights and return their state dict; they are always verified."""
        return load_weights(self.value.meta["record"], progress=progress).state


def return_layers(features: HarDNetFeatures) -> dict[str, str]:
    """Name the levels of a pyramid for torchvision's ``IntermediateLayerGetter`` and ``BackboneWithFPN``.

    >>> features = create_model("hardnet68", features_only=True)
    >>> return_layers(features)
    {'4': '0', '9': '1', '12': '2', '15': '3'}

    The names refer to ``features.base``: pass it with them.
    """
    return {info.module.removeprefix("base."): str(number) for number, info in enumerate(features.feature_info)}


def _weights_enum(name: str) -> Any:
    title = f"HarDNet{name.removeprefix('hardnet').upper()}_Weights"
    members = {tag: _weights(CATALOG[name, tag]) for tag in list_weights(name)}
    # Two names of one value: the second is an alias.
    return HarDNetWeights(title, {**members, DEFAULT: members[DEFAULT_TAG]}, module=__name__)


def _weights(record: WeightsRecord) -> Any:
    values = record.preprocessing
    sizes = {"crop_size": values.crop, "resize_size": values.resize}
    preset = partial(ImageClassification, **sizes, mean=values.mean, std=values.std)
    return _api.Weights(record.sources[0].url, preset, _meta(record))


def _meta(record: WeightsRecord) -> dict[str, Any]:
    side = record.preprocessing.crop
    cost = measure_cost(CONFIGS[record.model], height=side, width=side, num_classes=record.num_classes).total
    data = "ImageNet-1K" if record.evaluated_on == IMAGENET else record.evaluated_on  # torchvision's name for it
    packaged = record.sources[0].url.startswith(PACKAGE)
    size = cost.params * (
        2 if packaged else 4
    )  # bytes of the parameters, slightly less than the file's; float16 in the package
    return {
        **record.meta,
        "record": record,
        "num_params": cost.params,
        "min_size": (MIN_INPUT_SIZE, MIN_INPUT_SIZE),
        "recipe": next((url for name, url in _RECIPES.items() if name in record.provenance), "docs/training.md"),
        "_metrics": {data: {"acc@1": 100 - record.top1_error, "acc@5": 100 - record.top5_error}},
        "_ops": round(cost.macs / 1e9, 3),
        "_file_size": round(size / 2**20, 1),
        "_docs": f"{record.provenance}; the errors are those reported by {record.reported_by}",
    }


def _builder(name: str, weights_enum: Any) -> Callable[..., nn.Module]:
    def create(*, weights: Any = None, progress: bool = True, **keywords: Any) -> nn.Module:
        weights = weights_enum.verify(weights)
        record = None if weights is None else weights.meta["record"]
        model: nn.Module = create_model(name, weights=record, progress=progress, **keywords)
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"""{name} for torchvision.models.get_model; other keywords are those of hardnet.create_model.

    ``weights`` is a member of {weights_enum.__name__}, its name, or None for a random initialisation.
    """
    create.__annotations__["weights"] = weights_enum | None  # get_model_weights looks here
    return create


for _name in CONFIGS:
    _enum = _weights_enum(_name)
    globals()[_enum.__name__] = _enum
    globals()[_name] = _api.register_model()(_builder(_name, _enum))
