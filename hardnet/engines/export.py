"""Files of a model for programs that know nothing of this library, each run against the model before it is kept."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..images.preprocess import Preprocessing
from ..images.read import MAX_PIXELS
from ..models.network import HarDNet
from ..utils.errors import ExportError
from ..utils.files import hidden_prefix, scratch_folder
from .base import quiet_exporter
from .folding import fold
from .formats import FORMATS, Predict

TOLERANCE = 1e-4
"""How far logits of a file may be from the model's, as a share of the largest."""

_PHOTOGRAPH = Path(__file__).with_name("photograph.jpg")


def export(
    model: HarDNet,
    path: str | os.PathLike[str],
    *,
    format: str,
    size: tuple[int, int] | None = None,
    uint8_input: bool = False,
) -> Path:
    """Write a classifier as a file that other programs can load, and return its path.

    The file takes float32 images (N, in_chans, H, W), prepared as the model wants them, and gives (N, classes) logits;
    N is free, and H and W are too (in "torch-export" from 64 pixels on), except in "aoti", which also takes for granted
    that the tensor is contiguous. The file carries texts: ``model``, ``weights``, ``classes`` (a JSON list),
    ``preprocessing`` (JSON) and ``versions`` (JSON). Before it takes its place it is loaded and run against the model,
    on random pictures and on a photograph, in several shapes; it is dropped where the logits differ by more than 1e-4
    of the largest. A file that was there before stays until then.

    Args:
        model: with the weights that are to go along; it is not changed.
        path: of the file. "openvino" writes a second one beside it, with the weights and the suffix ``.bin``.
        format: "onnx" (opset 18), "openvino", "torch-export", "aoti" (compiled for this processor) or "torchscript".
        size: H and W of the pictures, where they are fixed; None takes the crop of the weights' preprocessing.
        uint8_input: take uint8 RGB values in place of float32: scaling and normalising are then part of the file, and
            only resizing and cropping remain outside.

    Raises:
        ValueError: an unknown format, a suffix that does not go with it, a size that is too small or too large, or
            ``uint8_input`` for a model that does not take RGB.
        ImportError: the format needs a package that is missing; the message names the extra.
        ExportError: the file does not compute what the model computes.
        OSError: the file cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"there is no format {format!r}; known: {', '.join(FORMATS)}")
    kind, target = FORMATS[format], Path(path)
    if target.suffix != kind.suffix:
        raise ValueError(f"a file of {format} ends in {kind.suffix}, got {str(target)!r}")
    wanted = model.weights_record.preprocessing if model.weights_record else Preprocessing()
    height, width = size or (wanted.crop, wanted.crop)
    if min(height, width) < kind.least_size:
        raise ValueError(f"the size for {format} must be {kind.least_size} pixels or more, got {height}x{width}")
    if height * width > MAX_PIXELS:
        raise ValueError(f"the size may be {MAX_PIXELS:,} pixels at most, got {height}x{width}")
    if uint8_input and model.in_chans != 3:
        raise ValueError(f"uint8_input is for RGB images, the model takes {model.in_chans} channels")
    folded: nn.Module = fold(model).cpu().float()
    if uint8_input:
        folded = Uint8Input(folded, wanted)
    example = _random(2, model.in_chans, height, width, uint8_input)
    with scratch_folder(target.parent, hidden_prefix(target)) as scratch:
        written = scratch / target.name
        with quiet_exporter():
            kind.write(folded, written, example, metadata(model, uint8_input))
        sizes = [(height, width)]
        if not kind.fixed_size:
            sizes += [(kind.least_size, kind.least_size), (kind.least_size + 1, 97)]
        _compare(kind.load(written), model, wanted, sizes, uint8_input)
        for file in sorted(scratch.iterdir(), key=lambda file: file == written):  # the weights before what names them
            file.replace(target.with_name(file.name))
    return target


def metadata(model: HarDNet, uint8_input: bool = False) -> dict[str, str]:
    """Return the texts that go into a file."""
    from ..utils.version import __version__

    record = model.weights_record
    classes = record.categories if record and record.num_classes == model.num_classes else None
    preprocessing = asdict(record.preprocessing if record else Preprocessing())
    preprocessing["input"] = (
        "uint8 RGB (N, 3, H, W), resized and cropped" if uint8_input else "float32 (N, C, H, W), normalised"
    )
    return {
        "model": model.config.name,
        "weights": str(record) if record else "",
        "classes": json.dumps(classes),
        "preprocessing": json.dumps(preprocessing),
        "versions": json.dumps({"hardnet": __version__, "torch": torch.__version__}),
    }


class Uint8Input(nn.Module):
    """Scaling and normalising before a model: uint8 RGB (N, 3, H, W) -> what the model gives."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Uint8 RGB (N, 3, H, W) -> (N, classes) logits."""
        logits: Tensor = self.model((x.float() / 255 - self.mean) / self.std)
        return logits


def _compare(
    predict: Predict,
    model: HarDNet,
    preprocessing: Preprocessing,
    sizes: list[tuple[int, int]],
    uint8_input: bool,
) -> None:
    """Run what was loaded from a file against the model.

    Raises:
        ExportError: the logits differ.
    """
    reference: nn.Module = copy.deepcopy(model).cpu().float().eval()
    if uint8_input:
        reference = Uint8Input(reference, preprocessing)
    channels = model.in_chans
    inputs = [_random(count, channels, *size, uint8_input) for count in (1, 3) for size in sizes]
    if channels == 3:
        inputs.append(_photograph(preprocessing, sizes[0], uint8_input))
    for x in inputs:
        with torch.no_grad():
            wanted = reference(x)
        found = predict(x)
        error = ((found - wanted).abs().max() / wanted.abs().max()).item() if found.shape == wanted.shape else None
        if error is None or not error <= TOLERANCE:
            how = f"by {error:.1e} of the largest" if error is not None else f"in shape: {tuple(found.shape)}"
            raise ExportError(
                f"the exported {model.config.name} differs from the model {how} for input of shape {tuple(x.shape)}; "
                "nothing was written"
            )


def _random(count: int, channels: int, height: int, width: int, uint8: bool) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    if uint8:
        return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    return torch.randn(count, channels, height, width, generator=generator)


def _photograph(preprocessing: Preprocessing, size: tuple[int, int], uint8: bool) -> Tensor:
    """A real picture, as the file takes it."""
    from PIL import Image
    from torchvision.transforms import functional  # type: ignore[import-untyped]

    with Image.open(_PHOTOGRAPH) as image:
        picture = image.convert("RGB").resize((size[1], size[0]))
    if uint8:
        values: Tensor = functional.pil_to_tensor(picture)[None].contiguous()
        return values
    normalised: Tensor = functional.normalize(
        functional.to_tensor(picture), list(preprocessing.mean), list(preprocessing.std)
    )
    return normalised[None]
