"""ONNX Runtime: float32 on CPUs, int8 by its own quantiser; ONNX files."""

import functools
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from ..models.network import ImageModule
from ..utils.optional import require
from .base import Conversion, EngineSettings, Run, undisturbed
from .cache import converted

INPUT = "images"
OPSET = 18  # the oldest one that torch's exporter writes, so that most runtimes read the files
_LOWEST = "1.19"


def build(model: ImageModule, settings: EngineSettings, calibration: list[Tensor]) -> Run:
    """Convert, or take the conversion from the cache, and open a session."""
    version = require("onnxruntime", _LOWEST, extra="onnxruntime").__version__
    load = functools.partial(load_onnx, threads=settings.threads)
    return converted(model, settings, calibration, version, "model.onnx", write_onnx, load)


def load_onnx(path: Path, threads: int | None = None) -> Run:
    """Return the function that runs a file of ONNX: (N, C, H, W) -> its outputs."""
    runtime = require("onnxruntime", _LOWEST, extra="onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(array) for array in session.run(None, {INPUT: x.contiguous().numpy()})]


def write_onnx(job: Conversion, path: Path) -> None:
    """Write a model for any number of images of any size, with the weights and the texts in the same file."""
    require("onnx", "1.17", extra="onnxruntime")
    require("onnxscript", "0.2", extra="onnxruntime")
    axes: dict[int, Any] = {0: "batch", 2: "height", 3: "width"}
    if TorchVersion(torch.__version__) < "2.7":  # which takes no names
        axes = dict.fromkeys(axes, importlib.import_module("torch.export").Dim.DYNAMIC)
    with torch.no_grad(), undisturbed():
        program = torch.onnx.export(
            job.model,
            (job.example,),
            dynamo=True,
            dynamic_shapes=(axes,),
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=job.outputs or None,
            verbose=False,
        )
        assert program is not None  # noqa: S101 - what the exporter returns with dynamo=True
        program.model.metadata_props.update(job.texts)
        program.save(str(path))
        if job.calibration:
            _quantize(path, job.calibration)


def _quantize(path: Path, calibration: list[Tensor]) -> None:
    """Replace a float32 file by its int8 form: activations per tensor, weights per channel.

    Weights have 7 bits: x86 processors without VNNI add products of int8 in pairs in 16 bits, which saturate.
    """
    inputs = ({INPUT: batch.contiguous().numpy()} for batch in calibration)
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
        reduce_range=True,
    )
