"""OpenVINO: float32 and bf16 on CPUs, int8 by NNCF; OpenVINO files."""

import contextlib
import functools
import importlib
import io
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..images.preprocess import Preprocessing
from ..models.network import ImageModule
from ..utils.devices import cpu_flags
from ..utils.optional import require
from .base import Conversion, EngineSettings, Output, Run, undisturbed
from .cache import converted

_LOWEST = "2024.6"


def build(model: ImageModule, settings: EngineSettings, calibration: list[Tensor]) -> Run:
    """Convert, or take the conversion from the cache, and compile it for this processor."""
    skip_depthwise = cpu_has_amx_int8()

    def load(path: Path) -> Run:
        network = core().read_model(path)

        @functools.cache
        def compiled(of_pixels: bool) -> Run:
            images = network.clone()
            if of_pixels and settings.preprocessing is not None:
                images = _with_pixels(images, settings.preprocessing)
            return _runner(images, "bf16" if settings.precision == "bf16" else "f32", settings.threads)

        return lambda x: compiled(x.dtype == torch.uint8)(x)

    conditions = require("openvino", _LOWEST, extra="openvino").__version__, skip_depthwise
    write = functools.partial(write_openvino, skip_depthwise=skip_depthwise)
    return converted(model, settings, calibration, conditions, "model.xml", write, load)


def load_openvino(path: Path) -> Run:
    """Return the function that runs a file of OpenVINO: (N, C, H, W) -> its outputs."""
    return _runner(core().read_model(path), "f32", torch.get_num_threads())


def cpu_has_amx_int8() -> bool:
    """Return whether the processor has the int8 matrix unit of recent Intel Xeons (on Linux; else False)."""
    return "amx_int8" in cpu_flags()


@functools.cache
def core() -> Any:
    """Return OpenVINO's runtime, the only one of this process.

    A runtime installs a signal stack for the main thread and restores the previous one when it is deleted. If two are
    not deleted in reverse order, the second restores a stack that has been freed, and the next Ctrl-C is a
    segmentation fault (seen with 2026.4.1).
    """
    return require("openvino", _LOWEST, extra="openvino").Core()


def _runner(network: Any, precision: str, threads: int) -> Run:
    """Compile a network; return a function from images to its outputs, which threads may share."""
    # Without a hint, a processor with bf16 computes in bf16.
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    compiled = core().compile_model(network, "CPU", hints)
    local = threading.local()  # a request serves one thread at a time

    def run(x: Tensor) -> Output:
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        arrays = local.request.infer([x.contiguous().numpy()], share_inputs=True, share_outputs=False)
        return [torch.from_numpy(arrays[index]) for index in range(len(compiled.outputs))]

    return run


def _with_pixels(network: Any, preprocessing: Preprocessing) -> Any:
    """Make the input of a network, in place, uint8 pixels that it scales and normalises itself."""
    openvino = require("openvino", _LOWEST, extra="openvino")
    pre = importlib.import_module("openvino.preprocess").PrePostProcessor(network)
    pre.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NCHW"))
    steps = pre.input().preprocess().convert_element_type(openvino.Type.f32)
    steps.mean([255 * value for value in preprocessing.mean]).scale([255 * value for value in preprocessing.std])
    return pre.build()


def write_openvino(job: Conversion, path: Path, skip_depthwise: bool = True) -> None:
    """Write a model for any number of images of any size: the network to ``path``, the weights to a ``.bin`` file.

    ``skip_depthwise`` leaves the depthwise convolutions of int8 in float32: on processors with AMX, OpenVINO's int8
    ones crash on small maps (seen with 2026.4.1 on an Intel Xeon).

    Raises:
        OSError: the files cannot be written.
    """
    openvino = require("openvino", _LOWEST, extra="openvino")
    wrapped = nn.Sequential(job.model).eval()  # before 2025, OpenVINO takes a .config for that of a transformers model
    with torch.no_grad(), undisturbed():
        shape = [-1, job.example.shape[1], -1, -1]
        network = openvino.convert_model(wrapped, example_input=job.example, input=shape)
        network.inputs[0].get_tensor().set_names({"images"})
        for port, name in zip(network.outputs, job.outputs, strict=False):
            port.get_tensor().set_names({name})
        if job.calibration:
            network = _quantize(network, job.calibration, skip_depthwise)
    for key, value in job.texts.items():
        network.set_rt_info(value, ["hardnet", key])
    try:
        openvino.save_model(network, path, compress_to_fp16=job.precision == "fp16")
    except RuntimeError as error:
        raise OSError(f"OpenVINO could not write the file; the disk may be full ({error})") from error


def _quantize(network: Any, calibration: list[Tensor], skip_depthwise: bool) -> Any:
    """Return the int8 form of a converted model, by NNCF."""
    images = [image[None] for batch in calibration for image in batch]
    depthwise = {"GroupConvolution"} & {operator.get_type_name() for operator in network.get_ops()}
    # NNCF draws progress bars on standard output, where the command line prints its results.
    bars = contextlib.redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO())
    with bars:
        nncf = require("nncf", "2.14", extra="int8")
        return nncf.quantize(
            network,
            nncf.Dataset(images, lambda image: image.numpy()),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(types=list(depthwise)) if skip_depthwise and depthwise else None,
        )
