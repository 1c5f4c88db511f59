"""ONNX Runtime: float32 on CPUs, int8 by its own quantiser; ONNX files."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from ..models.network import ImageModule
from ..utils.devices import cpu_flags
from ..utils.optional import require
from .base import EngineSettings, Run, undisturbed
from .cache import converted

INPUT = "images"
"""The name of the input."""
OPSET = 18
"""The opset of the files: the oldest one that torch's exporter writes, so that most runtimes read them."""
_LOWEST = "1.19"


def build(model: ImageModule, settings: EngineSettings, calibration: list[Tensor]) -> Run:
    """Convert, or take the conversion from the cache, and open a session."""
    runtime = require("onnxruntime", _LOWEST, extra="onnxruntime")
    int8 = settings.precision == "int8"
    seven_bits = int8 and cpu_sums_in_16_bits()
    # The int8 file depends on the version of the quantiser, the float32 file does not.
    conditions = (settings.precision, OPSET, runtime.__version__ if int8 else "", seven_bits)

    def convert(folded: nn.Module, folder: Path) -> None:
        write_onnx(folded, folder / "model.onnx", torch.zeros(2, model.in_chans, 64, 96))
        if int8:
            quantize_onnx(folder / "model.onnx", calibration, seven_bits)

    def load(folder: Path) -> Run:
        return load_onnx(folder / "model.onnx", settings.threads)

    return converted(model, settings, calibration, conditions, convert, load)


def load_onnx(path: Path, threads: int | None = None) -> Run:
    """Return the function that runs a file of ONNX: (N, C, H, W) -> its outputs."""
    runtime = require("onnxruntime", _LOWEST, extra="onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(array) for array in session.run(None, {INPUT: x.contiguous().numpy()})]


def write_onnx(
    model: nn.Module, path: Path, example: Tensor, texts: dict[str, str] | None = None, names: Sequence[str] = ()
) -> None:
    """Write a model in evaluation mode for any number of images of any size, with the weights in the same file.

    ``example`` has at least two images, not square, since equal sizes become one dimension. Any ONNX library reads the
    ``texts``. ``names`` are those of the outputs.
    """
    require("onnx", "1.17", extra="onnxruntime")
    require("onnxscript", "0.2", extra="onnxruntime")
    axes: dict[int, Any] = {0: "batch", 2: "height", 3: "width"}
    if TorchVersion(torch.__version__) < "2.7":  # which takes no names
        axes = dict.fromkeys(axes, importlib.import_module("torch.export").Dim.DYNAMIC)
    with torch.no_grad(), undisturbed():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=(axes,),
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=names or None,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - what the exporter returns with dynamo=True
    program.model.metadata_props.update(texts or {})
    program.save(str(path))


def cpu_sums_in_16_bits() -> bool:
    """Return whether int8 products are added in pairs in 16 bits, which saturate: on x86 without VNNI.

    Outside Linux, where it is not known, every x86 processor counts as such.
    """
    return platform.machine().lower() in ("x86_64", "amd64") and not cpu_flags() & {"avx512_vnni", "avx_vnni"}


def quantize_onnx(path: Path, calibration: list[Tensor], seven_bits: bool) -> None:
    """Replace a float32 ONNX file by its int8 form: activations per tensor, weights per channel, in 7 bits or 8."""
    inputs = ({INPUT: batch.contiguous().numpy()} for batch in calibration)
    with undisturbed():
        quantization = importlib.import_module("onnxruntime.quantization")
        prepare = importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process
        prepare(str(path), str(path), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(path),
            str(path),
            SimpleNamespace(get_next=lambda: next(inputs, None)),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=seven_bits,
        )
