"""Export a model to a file for other programs: ONNX, OpenVINO, torch.export, TorchScript.

Each file is loaded and compared with the model before it is kept.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..images.preprocess import Preprocessing
from ..images.read import load_image
from ..models.network import HarDNet, ImageModule, warn_if_untrained
from ..utils.errors import ExportError
from ..utils.files import scratch_folder
from ..utils.version import __version__
from .base import Conversion, Output, Run, difference, levels_of, map_levels, random_images, undisturbed
from .calibration import check_agreement, check_batches
from .folding import evaluation_copy, fold
from .onnx import load_onnx, write_onnx
from .openvino import load_openvino, write_openvino

TOLERANCES = {"fp32": 1e-4, "fp16": 5e-2, "int8": sys.float_info.max}
"""Largest difference from the model's output, relative to the largest value; in int8, labels are compared instead."""

_PHOTOGRAPH = Path(__file__).with_name("photograph.jpg")


def export(
    model: ImageModule,
    path: str | os.PathLike[str],
    *,
    format: str,
    uint8_input: bool = False,
    features: bool = False,
    precision: str = "fp32",
    calibration: Iterable[Tensor] | None = None,
) -> Path:
    """Write a model to a file that other programs can load, and return its path.

    The file takes float32 ``images`` (batch, in_chans, height, width), prepared as for the model, and returns float32
    ``logits``, or for a feature pyramid ``features_0``, ``features_1``, ... The number of images and their size are
    free ("torch-export" from 64 pixels, the segmentation network from 128). The file contains the texts ``model``,
    ``weights``, and in JSON ``classes``, ``preprocessing`` and ``versions``. It is loaded and compared with the model
    on random images and a photograph, in several shapes, before it replaces an existing file.

    Args:
        model: with the weights to export; it is not changed.
        path: of the file. "openvino" writes a second file next to it, with the weights and the suffix ``.bin``.
        format: "onnx" (opset 18), "openvino", "torch-export" or "torchscript".
        uint8_input: take uint8 RGB values instead of float32: the file scales and normalises them.
        features: return a classifier's pooled ``features``, (batch, num_features), in place of its logits.
        precision: "fp32"; in "onnx" and "openvino" also "fp16", which halves the file, and "int8". To run on every
            processor, depthwise convolutions stay in float32 in "openvino", and weights have 7 bits in "onnx".
        calibration: for int8, some batches of typical input, prepared as for the model; a few hundred images.

    Raises:
        TypeError: the model is not one of this library, or ``calibration`` has something else than tensors.
        ValueError: an unknown format, a suffix, precision or input that does not fit it, ``features`` of a model that
            is no classifier, a layer or calibration images that :func:`hardnet.accelerate` refuses.
        ImportError: the format needs a package that is missing; the message names the extra.
        ExportError: the output differs from that of the model by more than 1e-4 (fp16: 5e-2) of the largest value.
        OSError: the file cannot be written.
    """
    if not isinstance(model, ImageModule):
        raise TypeError(f"only models of this library can be exported, got {type(model).__name__}")
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    kind, target = FORMATS[format], Path(path)
    if target.suffix != kind.suffix:
        raise ValueError(f"the file name for {format} must end in {kind.suffix}, got {str(target)!r}")
    if precision not in kind.precisions:
        raise ValueError(f"{format} has no {precision!r}, only {', '.join(kind.precisions)}")
    preprocessing = model.preprocessing or Preprocessing()
    if uint8_input and model.in_chans != 3:
        raise ValueError(f"uint8_input is for RGB images, the model takes {model.in_chans} channels")
    if features and not isinstance(model, HarDNet):
        raise ValueError(f"features= is for classifiers, got {type(model).__name__}")
    batches = check_batches(model, calibration, precision)
    warn_if_untrained(model)
    reference = evaluation_copy(model).cpu().float()
    if features:
        cast(HarDNet, reference).reset_classifier(0)
    normalising = preprocessing if uint8_input else None
    folded: nn.Module = fold(reference)
    if (format, precision) == ("onnx", "fp16"):  # OpenVINO compresses the weights itself
        folded = Half(folded)
    original, network = ExportedModel(reference, normalising), ExportedModel(folded, normalising)
    if uint8_input:
        batches = [_as_pixels(batch, preprocessing) for batch in batches]
    # Unequal sizes, and no feature map of one pixel: torch.export would treat them as constants.
    least = 2 * model.min_input_size
    example = random_images(2, model.in_chans, 2 * least, 3 * least, uint8_input)
    with torch.no_grad():
        count = len(levels_of(network(example)))
    names = [f"features_{number}" for number in range(count)] if count > 1 else ["features"]
    if getattr(reference, "num_classes", None):
        names = ["logits"]
    job = Conversion(network, example, precision, batches, names, _texts(model, preprocessing))
    with scratch_folder(target.parent, f".{target.name[:50]}.") as scratch:
        written = scratch / target.name
        with undisturbed():
            kind.write(job, written)
            run = kind.load(written)
        crop = max(preprocessing.crop, 2 * least)
        sizes = [(crop, crop), (least, least), (least + 1, least + 33)]
        inputs = [random_images(count, model.in_chans, *size, uint8_input) for count in (1, 3) for size in sizes]
        if model.in_chans == 3:
            pixels = replace(preprocessing, resize=crop, crop=crop).pixels(load_image(_PHOTOGRAPH))[None]
            inputs.append(pixels if uint8_input else preprocessing.normalise(pixels))
        for x in inputs:
            with torch.no_grad():
                error = difference(run(x), original(x))
            if not error <= TOLERANCES[precision]:
                raise ExportError(
                    f"the exported {model.config.name} differs from the model by {error:.1e} of the largest value for "
                    f"input of shape {tuple(x.shape)}; nothing was written"
                )
        if batches:
            check_agreement(original, run, batches, labelled=names == ["logits"])
        for file in sorted(scratch.iterdir(), key=lambda file: file == written):  # the .bin file before the .xml file
            file.replace(target.with_name(file.name))
    return target


def _texts(model: ImageModule, preprocessing: Preprocessing) -> dict[str, str]:
    """Return the texts that are stored in a file."""
    return {
        "model": model.config.name,
        "weights": str(model.weights_record or ""),
        "classes": json.dumps(model.categories),
        "preprocessing": json.dumps(preprocessing.to_dict()),
        "versions": json.dumps({"hardnet": __version__, "torch": torch.__version__}),
    }


class ExportedModel(nn.Module):
    """A model whose input is called ``images``: uint8 pixels if there is ``preprocessing``, which normalises them."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing | None) -> None:
        super().__init__()
        self.model = model
        self.mean: Tensor | None = None
        self.std: Tensor | None = None
        if preprocessing is not None:
            self.mean = torch.tensor(preprocessing.mean).view(1, 3, 1, 1)
            self.std = torch.tensor(preprocessing.std).view(1, 3, 1, 1)
        self.train(False)

    def forward(self, images: Tensor):  # type: ignore[no-untyped-def]
        """(N, C, H, W) -> output of the model."""
        mean, std = self.mean, self.std
        if mean is not None and std is not None:
            images = (images.float() / 255 - mean) / std
        return self.model(images)


class Half(nn.Module):
    """A model that computes in float16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.half()

    def forward(self, x: Tensor) -> Output:
        """Float32 (N, C, H, W) -> float32 output of the model."""
        return map_levels(Tensor.float, self.model(x.half()))


def _as_pixels(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Undo the normalisation: (N, 3, H, W), float32 -> uint8."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


class Format(NamedTuple):
    """One kind of file."""

    write: Callable[[Conversion, Path], None]
    load: Callable[[Path], Run]  # needs the format's own library alone
    suffix: str
    precisions: tuple[str, ...] = ("fp32",)


def _write_torch_export(job: Conversion, path: Path) -> None:
    from torch.export import Dim

    sizes = {"images": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    with torch.no_grad():
        program = torch.export.export(job.model, (job.example,), dynamic_shapes=sizes, strict=False)
    buffer = io.BytesIO()  # torch's own file writer aborts the process on a full disk
    torch.export.save(program, buffer, extra_files=cast("dict[str, Any]", job.texts))
    path.write_bytes(buffer.getbuffer())


def _write_torchscript(job: Conversion, path: Path) -> None:
    buffer = io.BytesIO()  # as above
    torch.jit.save(torch.jit.freeze(torch.jit.script(job.model)), buffer, _extra_files=job.texts)
    path.write_bytes(buffer.getbuffer())


FORMATS = {
    "onnx": Format(write_onnx, load_onnx, ".onnx", ("fp32", "fp16", "int8")),
    "openvino": Format(write_openvino, load_openvino, ".xml", ("fp32", "fp16", "int8")),
    "torch-export": Format(_write_torch_export, lambda path: torch.export.load(path).module(), ".pt2"),
    "torchscript": Format(_write_torchscript, lambda path: torch.jit.load(str(path)), ".pt"),  # type: ignore[no-untyped-call]
}
"""Values of ``format=``."""
