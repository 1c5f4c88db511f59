"""Copy a model for inference; fold batch normalisation into the convolutions."""

import copy
from typing import TypeVar, cast

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..models.layers import ConvLayer, DWConvLayer
from .torch_private import has_hooks

Model = TypeVar("Model", bound=nn.Module)

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def evaluation_copy(model: Model) -> Model:
    """Return a copy in evaluation mode, without gradients; ValueError names a layer that does what it would not do."""
    for name, module in model.named_modules():
        problem = None
        if has_hooks(module):
            problem = "has a hook, which would not run: remove it first (after pruning, prune.remove)"
        elif parametrize.is_parametrized(module):
            problem = "is parametrised: call torch.nn.utils.parametrize.remove_parametrizations first"
        elif isinstance(module, _NORMS) and module.running_mean is None:
            problem = "normalises by the statistics of each batch: only the model itself can do this"
        elif isinstance(module, (*_NORMS, *_DROPOUTS)) and module.training and not model.training:
            problem = "is in training mode, the model is not: call model.eval(), or run the model itself"
        if problem is not None:
            raise ValueError(f"{type(module).__name__} {name or 'model'!r} {problem}")
    return copy.deepcopy(model).eval().requires_grad_(False)


def fold(model: Model) -> Model:
    """Return a copy of a model, in evaluation mode, with batch normalisation folded into the convolutions.

    The copy computes the same up to rounding. It cannot be trained, and its state dict has other keys. Layers that were
    replaced by others stay as they are. ValueError names a layer that no copy can stand for.
    """
    folded = evaluation_copy(model)
    for layer in list(folded.modules()):
        name, *rest = plain_layers(layer)
        if rest[:1] == ["norm"]:
            conv, norm = cast(nn.Conv2d, getattr(layer, name)), cast(nn.BatchNorm2d, layer.norm)
            setattr(layer, name, fuse_conv_bn_eval(conv, norm))
            del layer.norm
    return folded


_USUAL: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (nn.Conv2d,),
    "dwconv": (nn.Conv2d,),
    "norm": (nn.BatchNorm2d, nn.SyncBatchNorm),
    "relu": (nn.ReLU, nn.ReLU6),
}


def plain_layers(layer: nn.Module) -> list[str]:
    """Return the names of the modules of a ConvLayer or DWConvLayer if they are the usual ones in order, else [""]."""
    names = [name for name, part in layer.named_children() if type(part) in _USUAL.get(name, ())]
    plain = len(names) == len(list(layer.children())) and names[:1] in (["conv"], ["dwconv"]) and names == sorted(names)
    return names if plain and type(layer) in (ConvLayer, DWConvLayer) else [""]
