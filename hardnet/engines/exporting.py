"""Export a model to a file for other programs: ONNX, OpenVINO, torch.export, TorchScript.

Each file is loaded and compared with the model before it is kept.
"""

from __future__ import annotations

import copy
import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..images.preprocess import Preprocessing
from ..images.read import MAX_PIXELS
from ..models.network import MIN_INPUT_SIZE, HarDNet, ImageModule, warn_if_untrained
from ..models.segmentation import FCHarDNet
from ..utils.errors import ExportError
from ..utils.files import scratch_folder
from ..utils.version import __version__
from .base import undisturbed
from .folding import fold
from .onnx import open_session, write_onnx
from .openvino import core, to_openvino, write_openvino

Predict = Callable[[Tensor], Tensor]

TOLERANCE = 1e-4
"""Largest difference between the logits of a file and those of the model, relative to the largest logit."""

_PHOTOGRAPH = Path(__file__).with_name("photograph.jpg")


def export(
    model: HarDNet | FCHarDNet,
    path: str | os.PathLike[str],
    *,
    format: str,
    size: tuple[int, int] | None = None,
    uint8_input: bool = False,
) -> Path:
    """Write a classifier or segmentation network to a file that other programs can load, and return its path.

    The file takes float32 images (N, in_chans, H, W), prepared as for the model, and returns its logits. N, H and W are
    free ("torch-export" from 64 pixels). The file contains texts: ``model``, ``weights``, ``classes`` (a JSON
    list), ``preprocessing`` (JSON) and ``versions`` (JSON). It is loaded and compared with the model on random images
    and a photograph, in several shapes, before it replaces an existing file.

    Args:
        model: with the weights to export; it is not changed.
        path: of the file. "openvino" writes a second file next to it, with the weights and the suffix ``.bin``.
        format: "onnx" (opset 18), "openvino", "torch-export" or "torchscript".
        size: H and W of the images; None uses the crop of the weights' preprocessing, if there is one.
        uint8_input: take uint8 RGB values instead of float32: scaling and normalisation become part of the file, only
            resizing and cropping remain outside.

    Raises:
        ValueError: an unknown format, a suffix that does not fit it, a size that is too small or too large, or
            ``uint8_input`` for a model that does not take RGB.
        ImportError: the format needs a package that is missing; the message names the extra.
        ExportError: the logits differ from those of the model by more than 1e-4 of the largest.
        OSError: the file cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"there is no format {format!r}; known: {', '.join(FORMATS)}")
    kind, target = FORMATS[format], Path(path)
    if target.suffix != kind.suffix:
        raise ValueError(f"the file name for {format} must end in {kind.suffix}, got {str(target)!r}")
    warn_if_untrained(model)
    preprocessing = model.preprocessing or Preprocessing()
    height, width = size or (preprocessing.crop or 4 * model.min_input_size,) * 2
    least = max(kind.least_size, model.min_input_size)
    if min(height, width) < least:
        raise ValueError(f"the size for {format} must be {least} pixels or more, got {height}x{width}")
    if height * width > MAX_PIXELS:
        raise ValueError(f"the size may be {MAX_PIXELS:,} pixels at most, got {height}x{width}")
    if uint8_input and model.in_chans != 3:
        raise ValueError(f"uint8_input is for RGB images, the model takes {model.in_chans} channels")
    folded: nn.Module = fold(model).cpu().float()
    if uint8_input:
        folded = Uint8Input(folded, preprocessing)
    example = _random(2, model.in_chans, height, width, uint8_input)
    with scratch_folder(target.parent, f".{target.name[:50]}.") as scratch:
        written = scratch / target.name
        with undisturbed():
            kind.write(folded, written, example, metadata(model, uint8_input))
        sizes = [(height, width), (least, least), (least + 1, 97)]
        _compare(kind.load(written), model, preprocessing, sizes, uint8_input)
        for file in sorted(scratch.iterdir(), key=lambda file: file == written):  # the .bin file before the .xml file
            file.replace(target.with_name(file.name))
    return target


def metadata(model: ImageModule, uint8_input: bool = False) -> dict[str, str]:
    """Return the texts that are stored in a file."""
    record = model.weights_record
    preprocessing = asdict(model.preprocessing or Preprocessing())
    preprocessing["input"] = (
        f"uint8 {preprocessing['channels']} (N, 3, H, W)" if uint8_input else "float32 (N, C, H, W), normalised"
    )
    return {
        "model": model.config.name,
        "weights": str(record) if record else "",
        "classes": json.dumps(model.categories),
        "preprocessing": json.dumps(preprocessing),
        "versions": json.dumps({"hardnet": __version__, "torch": torch.__version__}),
    }


class Uint8Input(nn.Module):
    """Scale and normalise before a model: uint8 RGB (N, 3, H, W) -> output of the model."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Uint8 RGB (N, 3, H, W) -> logits."""
        logits: Tensor = self.model((x.float() / 255 - self.mean) / self.std)
        return logits


def _compare(
    predict: Predict, model: ImageModule, preprocessing: Preprocessing, sizes: list[tuple[int, int]], uint8_input: bool
) -> None:
    """Compare a loaded file with the model.

    Raises:
        ExportError: the logits differ.
    """
    reference: nn.Module = copy.deepcopy(model).cpu().float().eval()
    if uint8_input:
        reference = Uint8Input(reference, preprocessing)
    inputs = [_random(count, model.in_chans, *size, uint8_input) for count in (1, 3) for size in sizes]
    if model.in_chans == 3:
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
    """Return a photograph as input of the file: (1, 3, H, W)."""
    from PIL import Image
    from torchvision.transforms import functional  # type: ignore[import-untyped]

    with Image.open(_PHOTOGRAPH) as image:
        values: Tensor = functional.pil_to_tensor(image.convert("RGB").resize((size[1], size[0])))
    if not uint8:
        values = functional.normalize(values / 255, list(preprocessing.mean), list(preprocessing.std))
    return values[None].contiguous()


class Format(NamedTuple):
    """One kind of file."""

    write: Callable[[nn.Module, Path, Tensor, dict[str, str]], None]
    """(model, path, example input, texts) -> a file."""
    load: Callable[[Path], Predict]
    """With the format's own library alone."""
    suffix: str
    least_size: int = MIN_INPUT_SIZE
    """The smallest height and width, in pixels."""


def _load_onnx(path: Path) -> Predict:
    session = open_session(path, torch.get_num_threads())
    return lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


def _write_openvino(model: nn.Module, path: Path, example: Tensor, texts: dict[str, str]) -> None:
    converted = to_openvino(model, example)
    for key, value in texts.items():
        converted.set_rt_info(value, ["hardnet", key])
    write_openvino(converted, path)


def _load_openvino(path: Path) -> Predict:
    compiled = core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])


def _write_torch_export(model: nn.Module, path: Path, example: Tensor, texts: dict[str, str]) -> None:
    if example.shape[2] == example.shape[3]:  # equal sizes would become one dimension
        example = example.repeat(1, 1, 1, 2)
    sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=sizes, strict=False)
    buffer = io.BytesIO()  # torch's own file writer aborts the process on a full disk
    torch.export.save(program, buffer, extra_files={f"{key}.txt": value for key, value in texts.items()})
    path.write_bytes(buffer.getbuffer())


def _load_torch_export(path: Path) -> Predict:
    module: Predict = torch.export.load(path).module()
    return torch.no_grad()(module)


def _write_torchscript(model: nn.Module, path: Path, example: Tensor, texts: dict[str, str]) -> None:
    scripted = torch.jit.freeze(torch.jit.script(model))
    buffer = io.BytesIO()  # as above
    torch.jit.save(scripted, buffer, _extra_files={f"{key}.txt": value for key, value in texts.items()})
    path.write_bytes(buffer.getbuffer())


def _load_torchscript(path: Path) -> Predict:
    module: Predict = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return torch.no_grad()(module)


FORMATS = {
    "onnx": Format(write_onnx, _load_onnx, ".onnx"),
    "openvino": Format(_write_openvino, _load_openvino, ".xml"),
    # torch.export treats a last feature map of one pixel as a special case and excludes it.
    "torch-export": Format(_write_torch_export, _load_torch_export, ".pt2", least_size=64),
    "torchscript": Format(_write_torchscript, _load_torchscript, ".pt"),
}
"""What ``format=`` may be."""
