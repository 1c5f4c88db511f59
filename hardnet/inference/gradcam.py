"""Explain a classification: Grad-CAM maps of any class at any resolution, as tensors and as pictures.

Grad-CAM: Selvaraju et al., 2017, https://arxiv.org/abs/1610.02391.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ..images.batches import ImageLike, expand, prepare
from ..images.preprocess import Preprocessing
from ..models.config import FeatureInfo, feature_levels
from ..models.network import HarDNet
from .classifier import Classifier
from .results import ImageResult, Prediction, result_html

if TYPE_CHECKING:
    from PIL import Image

_MIN_MAP = 8  # smallest side of a feature map that is taken by default: coarser ones say little about the position
_MIN_SIDE = 448

# Polynomials in 1, x, ..., x^5 for red, green and blue of the colour map "turbo", by Anton Mikhailov (Google, 2019,
# Apache 2.0), https://research.google/blog/turbo-an-improved-rainbow-colormap-for-visualization/
_TURBO = (
    (0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943),
    (0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604),
    (0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973),
)


@dataclass(frozen=True, eq=False)
class Explanation:
    """The Grad-CAM map of one class on one image."""

    prediction: Prediction
    """The class and its probability."""
    result: ImageResult
    """The five most probable classes of the image."""
    activation: Tensor
    """The map (H, W) of the model's input, in float32 on the CPU: from 0 to 1, the most evidence for the class."""
    picture: Image.Image
    """The upright picture in RGB; the model's input, if that is what was given or the transform is a custom one."""
    box: tuple[float, float, float, float]
    """The part of ``picture`` that the model got: left, top, right, bottom in pixels."""

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """Return the picture with the map over it, from blue to red (1), and with an outline of what the model got.

        Where there is no evidence, the map is transparent. Pictures below 448 pixels are enlarged by a whole factor.
        """
        from PIL import Image, ImageDraw

        factor = max(1, _MIN_SIDE // min(self.picture.size))
        size = (self.picture.width * factor, self.picture.height * factor)
        picture = self.picture.resize(size, Image.Resampling.NEAREST)
        left, top, right, bottom = (round(value * factor) for value in self.box)
        colours = heat_map(self.activation, opacity).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
        picture.paste(colours, (left, top), colours)
        if self.box != (0, 0, *self.picture.size):
            width = max(2, min(size) // 200)
            for colour, part in (("black", width), ("white", width // 2)):
                ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), outline=colour, width=part)
        return picture

    def _repr_html_(self) -> str:
        """Return the image, the map over it and the result's table for notebooks."""
        caption = f"{self.result.source}: where it looks like {self.prediction.label} (red: most)"
        return result_html(self.result, [self.picture, self.overlay()], caption)


def explain(
    classifier: Classifier, image: ImageLike, *, label: str | int | None = None, stride: int | None = None
) -> Explanation:
    """Compute the Grad-CAM map of one class on one image.

    Args:
        classifier: with a :class:`hardnet.HarDNet` as its model, with any head; the engine must be "eager".
        image: one image, as for :meth:`hardnet.Classifier.stream`.
        label: the name of the class, in any case, or its index; None is the most probable class.
        stride: image pixels per pixel of the feature map: 2, 4, 8, 16 or 32. None takes the deepest map of at least
            8 x 8 pixels.

    Raises:
        TypeError: the classifier's model is not a HarDNet.
        ValueError: there is no such class or no map of that stride, or ``image`` is not one image.
        ImageError: the image is unusable.
    """
    model, transform = classifier.model, classifier.transform
    if not isinstance(model, HarDNet):
        raise TypeError(f'Grad-CAM requires a HarDNet with the engine "eager", got {type(model).__name__}')
    levels = {level.stride: level for level in feature_levels(model.config)}
    if stride is not None and stride not in levels:
        raise ValueError(f"stride must be one of {', '.join(map(str, levels))}, got {stride}")
    items = list(expand(image))
    if len(items) != 1:
        raise ValueError(f"expected one image, got {len(items)}")
    pictures: list[Image.Image] = []
    tensor = prepare(items[0], transform, model, report=pictures.append)
    [result] = classifier.stream([replace(items[0], content=tensor)], topk=10**6)
    prediction = result.predictions[0] if label is None else _find(result.predictions, label)
    [activation] = class_activations(model, tensor, [prediction.index], levels[stride] if stride else None)
    if pictures and isinstance(transform, Preprocessing):
        picture, box = pictures[0], transform.crop_box(*pictures[0].size)
    else:
        picture = seen_picture(tensor, transform if isinstance(transform, Preprocessing) else Preprocessing())
        box = (0, 0, *picture.size)
    return Explanation(prediction, replace(result, predictions=result.predictions[:5]), activation, picture, box)


def _find(predictions: Sequence[Prediction], label: str | int) -> Prediction:
    """Return the prediction of the class of that name, in any case, or else of that index."""
    by_name = {str(p.index): p for p in predictions}
    if isinstance(label, str):
        by_name |= {p.label.casefold(): p for p in reversed(predictions)} | {p.label: p for p in reversed(predictions)}
    if prediction := by_name.get(str(label), by_name.get(str(label).casefold())):
        return prediction
    names = {p.label.casefold(): p.label for p in predictions}
    near = difflib.get_close_matches(str(label).casefold(), names, n=1)
    advice = f" (did you mean {names[near[0]]!r}?)" if near else ""
    raise ValueError(f"there is no class {label!r} among the {len(predictions)} of the model{advice}")


def activation_level(model: HarDNet, height: int, width: int) -> FeatureInfo:
    """Return the deepest level whose map of such an image has at least 8 pixels a side: stride 16 for 224 pixels."""
    levels = feature_levels(model.config)
    large = [level for level in levels if min(height, width) // level.stride >= _MIN_MAP]
    return large[-1] if large else levels[0]


@torch.inference_mode(False)
@torch.enable_grad()
def class_activations(
    model: HarDNet, image: Tensor, indices: Sequence[int], level: FeatureInfo | None = None
) -> list[Tensor]:
    """Grad-CAM of some classes: (in_chans, H, W), prepared for the model -> (H, W) from 0 to 1 for each, on the CPU.

    1 is the position with the most evidence for the class; the map is 0 if there is none. The model must be in
    evaluation mode; its parameters and their gradients are not changed.
    """
    weight = next(model.parameters())
    level = level or activation_level(model, *image.shape[1:])
    with torch.no_grad():
        features = model.base[: level.module_index + 1](image[None].to(weight.device, weight.dtype))
    rest = model.base[level.module_index + 1 :]
    if weight.is_inference():  # autograd takes no weights that were made in inference mode
        rest = copy.deepcopy(rest)
    logits = rest(features.requires_grad_().clone())
    maps = []
    for index in indices:
        [gradient] = torch.autograd.grad(logits[0, index], features, retain_graph=True)
        coarse = (gradient.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True).relu().float()
        fine = functional.interpolate(coarse, size=image.shape[1:], mode="bilinear", align_corners=False)[0, 0].cpu()
        maps.append(fine / fine.max().clamp_min(torch.finfo(torch.float32).tiny))
    return maps


def seen_picture(image: Tensor, preprocessing: Preprocessing) -> Image.Image:
    """Undo the normalisation of a prepared tensor (1 or 3, H, W) and return it as an RGB picture."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return _picture(image.cpu().float() * std + mean)


def heat_map(activation: Tensor, opacity: float = 1.0) -> Image.Image:
    """Return an activation (H, W) from 0 to 1 as an RGBA picture, from blue to red (1); below 0.5 it fades out."""
    powers = torch.stack([activation**exponent for exponent in range(6)])
    colours = torch.einsum("ce,ehw->chw", torch.tensor(_TURBO), powers)
    alpha = (2 * activation).clamp(max=1) * opacity
    return _picture(torch.cat([colours, alpha[None]]))


def _picture(values: Tensor) -> Image.Image:
    """(3 or 4, H, W) from 0 to 1 -> an RGB or RGBA picture."""
    from PIL import Image

    return Image.fromarray(values.clamp(0, 1).mul(255).round().byte().movedim(0, -1).numpy())
