"""ONNX Runtime: float32, and int8 by its own quantiser; on CUDA with TensorRT where that is present."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.network import ImageModule
from ..utils.optional import require
from .base import Output, Plan, Run, quiet_exporter
from .cache import fingerprint, from_artifact
from .folding import fold
from .onnx_file import OPSET, write_onnx

_LOWEST = "1.19"


def build(model: ImageModule, plan: Plan, example: Tensor | None, calibration: list[Tensor]) -> Run:
    """Convert, or take the conversion from the cache, and open a session."""
    runtime = require("onnxruntime", _LOWEST, extra="onnxruntime")
    # The quantiser's choices follow the runtime's version, the plain file does not.
    version = runtime.__version__ if plan.precision == "int8" else ""
    key = fingerprint(model, "onnxruntime", plan.precision, OPSET, version, data=calibration)

    def convert(folder: Path) -> None:
        plain = fold(model).cpu().float()
        write_onnx(plain, folder / "model.onnx", torch.zeros(2, model.in_chans, 64, 96))
        if plan.precision == "int8":
            quantize_onnx(folder / "model.onnx", calibration)

    session = from_artifact(key, convert, lambda folder: open_session(folder / "model.onnx", plan.threads, plan.device))
    names = [output.name for output in session.get_outputs()]
    several = hasattr(model, "feature_info")
    pixels = session.get_inputs()[0].name

    def on_cpu(x: Tensor) -> Output:
        arrays = session.run(names, {pixels: x.contiguous().numpy()})
        tensors = [torch.from_numpy(array) for array in arrays]
        return tensors if several else tensors[0]

    def on_cuda(x: Tensor) -> Output:
        import numpy as np

        x = x.contiguous()
        binding = session.io_binding()
        index = x.device.index or 0
        binding.bind_input(pixels, "cuda", index, np.float32, tuple(x.shape), x.data_ptr())
        for name in names:
            binding.bind_output(name, "cpu")
        torch.cuda.current_stream(x.device).synchronize()  # the runtime has a stream of its own
        session.run_with_iobinding(binding)
        tensors = [torch.from_numpy(array).to(x.device) for array in binding.copy_outputs_to_cpu()]
        return tensors if several else tensors[0]

    return on_cuda if plan.device.type == "cuda" else on_cpu


def open_session(path: Path, threads: int, device: torch.device | None = None) -> Any:
    """Return a session of ONNX Runtime for a file.

    Raises:
        ImportError: the runtime is missing, or CUDA is wanted and it was built without.
    """
    runtime = require("onnxruntime", _LOWEST, extra="onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    providers: list[Any] = ["CPUExecutionProvider"]
    if device is not None and device.type == "cuda":
        present = runtime.get_available_providers()
        wanted = [name for name in ("TensorrtExecutionProvider", "CUDAExecutionProvider") if name in present]
        if not wanted:
            raise ImportError("this onnxruntime was built without CUDA: pip install onnxruntime-gpu in its place")
        providers = [(name, {"device_id": device.index or 0}) for name in wanted]
    return runtime.InferenceSession(str(path), options, providers=providers)


def quantize_onnx(path: Path, calibration: list[Tensor]) -> None:
    """Replace a float32 ONNX file by its int8 form: activations per tensor, weights per channel."""
    quantization = importlib.import_module("onnxruntime.quantization")
    shape_inference = importlib.import_module("onnxruntime.quantization.shape_inference")

    class Batches(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self._batches: Iterator[Tensor] = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"images": batch.cpu().float().contiguous().numpy()}

    prepared, quantized = path.with_suffix(".prepared.onnx"), path.with_suffix(".int8.onnx")
    with quiet_exporter():
        shape_inference.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(quantized),
            Batches(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    quantized.replace(path)
    prepared.unlink()
