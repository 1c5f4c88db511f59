"""OpenVINO: float32 and bf16 on CPUs, and int8 by NNCF."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.network import ImageModule
from ..utils.optional import require
from .base import Output, Plan, Run, quiet_exporter
from .cache import fingerprint, from_artifact
from .folding import fold

LOWEST = "2024.6"
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""Said each time: a processor with bf16 would otherwise compute in it unasked."""


def build(model: ImageModule, plan: Plan, example: Tensor | None, calibration: list[Tensor]) -> Run:
    """Convert, or take the conversion from the cache, and compile it for this processor."""
    openvino = require("openvino", LOWEST, extra="openvino")
    kind = "int8" if plan.precision == "int8" else "float"
    key = fingerprint(model, "openvino", kind, openvino.__version__, data=calibration)

    def convert(folder: Path) -> None:
        converted = to_openvino(fold(model).cpu().float(), torch.zeros(1, model.in_chans, 64, 96))
        if plan.precision == "int8":
            converted = quantize_openvino(converted, calibration)
        write_openvino(converted, folder / "model.xml")

    def compile_from(folder: Path) -> Any:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": plan.threads,
            "INFERENCE_PRECISION_HINT": _HINTS[plan.precision],
        }
        return core().compile_model(core().read_model(folder / "model.xml"), "CPU", settings)

    return runner(from_artifact(key, convert, compile_from), several=hasattr(model, "feature_info"))


@functools.cache
def core() -> Any:
    """Return OpenVINO's runtime, the only one of this process.

    A runtime lends the main thread a stack for signal handlers and, when it is deleted, puts back the one it found. Of
    two that are not deleted in reverse order the second puts back the stack of the first, which is gone: the next
    Ctrl-C would end in a segmentation fault (seen with 2026.4.1).
    """
    return require("openvino", LOWEST, extra="openvino").Core()


def runner(compiled: Any, *, several: bool = False) -> Run:
    """Return a function from images to the outputs of a compiled model; threads may share it."""
    of_thread = threading.local()  # a request serves one thread at a time

    def run(x: Tensor) -> Output:
        if not hasattr(of_thread, "request"):
            of_thread.request = compiled.create_infer_request()
        arrays = of_thread.request.infer([x.contiguous().numpy()], share_inputs=True, share_outputs=False)
        tensors = [torch.from_numpy(arrays[index]) for index in range(len(compiled.outputs))]
        return tensors if several else tensors[0]

    return run


def to_openvino(model: torch.nn.Module, example: Tensor) -> Any:
    """Convert a model in evaluation mode, for any number of images (N, C, H, W) of any size.

    Raises:
        ImportError: OpenVINO is missing.
    """
    openvino = require("openvino", LOWEST, extra="openvino")
    with torch.no_grad(), quiet_exporter():
        converted = openvino.convert_model(model, example_input=example, input=[("x", [-1, example.shape[1], -1, -1])])
    converted.inputs[0].get_tensor().set_names({"images"})
    return converted


def write_openvino(converted: Any, path: Path) -> None:
    """Write a converted model: what is told of it, and beside that the weights.

    Raises:
        OSError: it could not be written.
    """
    try:
        require("openvino", LOWEST, extra="openvino").save_model(converted, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(f"OpenVINO could not write it, perhaps for want of room ({error})") from error


def quantize_openvino(converted: Any, calibration: list[Tensor]) -> Any:
    """Return the int8 form of a converted model, by NNCF.

    Raises:
        ImportError: NNCF is missing.
    """
    nncf = require("nncf", "2.14", extra="int8")
    images = [image[None] for batch in calibration for image in batch.cpu().float()]
    dataset = nncf.Dataset(images, lambda image: image.numpy())
    # NNCF draws its progress on standard output, which may be somebody's JSON.
    bars = contextlib.redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO())
    with quiet_exporter(), bars:
        return nncf.quantize(converted, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=len(images))
