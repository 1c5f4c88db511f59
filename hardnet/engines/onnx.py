"""ONNX Runtime: float32, int8 by its own quantiser, CUDA and TensorRT where built in; ONNX files."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.network import ImageModule
from ..utils.devices import cpu_flags
from ..utils.optional import require
from .base import EngineSettings, Output, Run, undisturbed
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
    seven_bits = int8 and settings.device.type == "cpu" and cpu_sums_in_16_bits()
    # The int8 file depends on the version of the quantiser, the float32 file does not.
    conditions = (settings.precision, OPSET, runtime.__version__ if int8 else "", seven_bits)

    def convert(folded: nn.Module, folder: Path) -> None:
        write_onnx(folded, folder / "model.onnx", torch.zeros(2, model.in_chans, 64, 96))
        if int8:
            quantize_onnx(folder / "model.onnx", calibration, seven_bits)

    return converted(model, settings, calibration, conditions, convert, lambda folder: _load(folder, settings))


def _load(folder: Path, settings: EngineSettings) -> Run:
    session = open_session(folder / "model.onnx", settings.threads, settings.device)
    names = [output.name for output in session.get_outputs()]

    def on_cpu(x: Tensor) -> list[Tensor]:
        arrays = session.run(names, {INPUT: x.contiguous().numpy()})
        return [torch.from_numpy(array) for array in arrays]

    def on_cuda(x: Tensor) -> list[Tensor]:
        import numpy as np

        x = x.contiguous()
        binding = session.io_binding()
        binding.bind_input(INPUT, "cuda", x.device.index or 0, np.float32, tuple(x.shape), x.data_ptr())
        for name in names:
            binding.bind_output(name, "cpu")
        torch.cuda.current_stream(x.device).synchronize()  # the runtime has a stream of its own
        session.run_with_iobinding(binding)
        return [torch.from_numpy(array).to(x.device) for array in binding.copy_outputs_to_cpu()]

    def run(x: Tensor) -> Output:
        tensors = on_cuda(x) if settings.device.type == "cuda" else on_cpu(x)
        return tensors if settings.several else tensors[0]

    return run


def open_session(path: Path, threads: int, device: torch.device | None = None) -> Any:
    """Return a session of ONNX Runtime for a file.

    Raises:
        ImportError: the runtime is missing, or was built without CUDA and ``device`` is a CUDA device.
    """
    runtime = require("onnxruntime", _LOWEST, extra="onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    providers: list[Any] = ["CPUExecutionProvider"]
    if device is not None and device.type == "cuda":
        present = runtime.get_available_providers()
        names = [name for name in ("TensorrtExecutionProvider", "CUDAExecutionProvider") if name in present]
        if not names:
            raise ImportError("this onnxruntime was built without CUDA: install onnxruntime-gpu instead")
        providers = [(name, {"device_id": device.index or 0}) for name in names]
    return runtime.InferenceSession(str(path), options, providers=providers)


def write_onnx(model: nn.Module, path: Path, example: Tensor, metadata: dict[str, str] | None = None) -> None:
    """Write a model in evaluation mode for any number of images of any size, with the weights in the same file.

    Args:
        model: (N, C, H, W) -> one tensor or a list of them.
        path: of the file.
        example: an input of the model.
        metadata: texts to store in the file; any ONNX library reads them.

    Raises:
        ImportError: onnx or onnxscript is missing.
    """
    from torch.export import Dim

    require("onnx", "1.17", extra="onnxruntime")
    require("onnxscript", "0.2", extra="onnxruntime")
    if example.shape[0] < 2 or example.shape[2] == example.shape[3]:  # equal sizes would become one dimension
        example = example.new_zeros(2, example.shape[1], 64, 96)
    sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    with torch.no_grad(), undisturbed():
        count = len(output) if isinstance(output := model(example), (list, tuple)) else 1
        names = ["logits"] if count == 1 else [f"features_{index}" for index in range(count)]
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=sizes,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=names,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - what the exporter returns with dynamo=True
    for key, value in (metadata or {}).items():
        program.model.metadata_props[key] = value
    program.save(str(path))


def cpu_sums_in_16_bits() -> bool:
    """Return whether int8 products are added in pairs in 16 bits, which saturate: on x86 without VNNI.

    Outside Linux, where it is not known, every x86 processor counts as such.
    """
    return platform.machine().lower() in ("x86_64", "amd64") and not cpu_flags() & {"avx512_vnni", "avx_vnni"}


def quantize_onnx(path: Path, calibration: list[Tensor], seven_bits: bool) -> None:
    """Replace a float32 ONNX file by its int8 form: activations per tensor, weights per channel, in 7 bits or 8."""
    with undisturbed():
        quantization = importlib.import_module("onnxruntime.quantization")
        shape_inference = importlib.import_module("onnxruntime.quantization.shape_inference")

    class Batches(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self._batches: Iterator[Tensor] = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch.cpu().float().contiguous().numpy()}

    prepared, quantized = path.with_suffix(".prepared.onnx"), path.with_suffix(".int8.onnx")
    with undisturbed():
        shape_inference.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(quantized),
            Batches(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=seven_bits,
        )
    quantized.replace(path)
    prepared.unlink()
