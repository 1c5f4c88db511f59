"""The formats of exported files: how each is written, and how it is loaded without this library."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..models.network import MIN_INPUT_SIZE
from .inductor import compile_package
from .onnx import open_session
from .onnx_file import write_onnx
from .openvino import core, to_openvino, write_openvino

Predict = Callable[[Tensor], Tensor]
Writer = Callable[[nn.Module, Path, Tensor, dict[str, str]], None]


class Format(NamedTuple):
    """One kind of file."""

    write: Writer
    """(model, path, example input, texts to store) -> a file."""
    load: Callable[[Path], Predict]
    """With the format's own library alone."""
    suffix: str
    fixed_size: bool = False
    """Whether height and width are those of the example."""
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
    if example.shape[2] == example.shape[3]:  # equal sizes would be taken for one and the same
        example = example.repeat(1, 1, 1, 2)
    sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=sizes, strict=False)
    buffer = io.BytesIO()  # on a full disk, torch's own writer of files would end the process
    torch.export.save(program, buffer, extra_files={f"{key}.txt": value for key, value in texts.items()})
    path.write_bytes(buffer.getbuffer())


def _load_torch_export(path: Path) -> Predict:
    module: Predict = torch.export.load(path).module()
    return torch.no_grad()(module)


def _load_aoti(path: Path) -> Predict:
    import torch._inductor

    module: Predict = torch._inductor.aoti_load_package(str(path))
    return module


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
    # torch.export takes a last feature map of one pixel for a case of its own, which it leaves out.
    "torch-export": Format(_write_torch_export, _load_torch_export, ".pt2", least_size=64),
    "aoti": Format(compile_package, _load_aoti, ".pt2", fixed_size=True),
    "torchscript": Format(_write_torchscript, _load_torchscript, ".pt"),
}
"""What ``format=`` may be, and how each is written and loaded."""
