"""``hardnet.accelerate``: which engine, in which precision, and whether it can be had here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from importlib.util import find_spec

import torch
from torch import Tensor

from ..models.network import ImageModule
from . import inductor
from . import native as torch_engine
from . import onnx as onnx_runtime
from . import openvino as open_vino
from .base import Accelerated, Plan, Run

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
"""What ``precision=`` may be. Not every engine has each of them."""

Builder = Callable[[ImageModule, Plan, Tensor | None, list[Tensor]], Run]

_BUILDERS: dict[str, Builder] = {
    "eager": torch_engine.build_eager,
    "torch": torch_engine.build,
    "inductor": inductor.build,
    "aoti": inductor.build_packaged,
    "onnxruntime": onnx_runtime.build,
    "openvino": open_vino.build,
}
_CAN = {
    ("eager", "cpu"): ("fp32",),
    ("torch", "cpu"): ("fp32", "bf16"),
    ("inductor", "cpu"): ("fp32", "bf16"),
    ("aoti", "cpu"): ("fp32", "bf16"),
    ("onnxruntime", "cpu"): ("fp32", "int8"),
    ("openvino", "cpu"): ("fp32", "bf16", "int8"),
    ("eager", "cuda"): ("fp32",),
    ("torch", "cuda"): ("fp32", "bf16", "fp16"),
    ("inductor", "cuda"): ("fp32", "bf16", "fp16"),
    ("aoti", "cuda"): ("fp32", "bf16", "fp16"),
    ("onnxruntime", "cuda"): ("fp32",),
}
_NEEDS = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino",)}
_NEEDS_FOR_INT8 = {"onnxruntime": (), "openvino": ("nncf",)}

# On CPUs the fastest first, as measured in benchmarks/README.md. The compiling engines were not faster than "torch" by
# much, and half a minute of compiling is nothing to start unasked. On CUDA nothing was measured.
_PREFERRED = {"cpu": ("openvino", "onnxruntime", "torch"), "cuda": ("torch",)}

ENGINES = tuple(_BUILDERS)
"""What ``engine=`` may be, beside "auto"."""


def accelerate(
    model: ImageModule,
    *,
    engine: str = "auto",
    precision: str = "fp32",
    example_input: Tensor | None = None,
    threads: int | None = None,
    calibration: Iterable[Tensor] | None = None,
) -> Accelerated:
    """Return a model in a faster engine: the same signature and output, for evaluation only.

    Args:
        model: a classifier or a feature pyramid of this library, on the device where it is to run. It is not changed.
        engine: "torch" needs nothing more; "inductor" compiles on the first call of a shape, "aoti" once and for all
            for one shape of picture; "onnxruntime" and "openvino" are extras of those names; "eager" is the model as
            it is. "auto" takes the fastest of these that is installed and needs no compiler, and the log says which.
        precision: "fp32"; "bf16" where the processor has it; "fp16" on CUDA; "int8" by calibration.
        example_input: a batch of the shape that will come most often, (N, in_chans, H, W); engines that can prepare
            themselves for it. Other shapes work all the same, "aoti" apart, which is bound to H and W.
        threads: CPU threads; None takes torch's number.
        calibration: for int8, some batches of typical input, prepared as for the model; a few hundred pictures.

    Raises:
        TypeError: the model is not one of this library.
        ValueError: there is no such engine or precision, they do not go together or with the device, int8 without
            calibration, an unusable ``example_input``.
        ImportError: a package is missing; the message names the extra that brings it.
    """
    if not isinstance(model, ImageModule):
        raise TypeError(f"only models of this library can be accelerated, got {type(model).__name__}")
    device = next(model.parameters()).device
    plan = _plan(engine, precision, device, threads)
    batches = _calibration(precision, calibration)
    result = Accelerated(model, _BUILDERS[plan.engine](model, plan, example_input, batches), plan)
    logger.info("%s runs in %s, %s, on %s", model.config.name, plan.engine, plan.precision, device)
    if example_input is not None:
        for _ in range(2):  # what is prepared when a shape comes, or comes again, is prepared now
            result(example_input)  # and a wrong shape is refused now
    return result


def available_engines(device: str | torch.device = "cpu", precision: str = "fp32") -> list[str]:
    """Return the engines that can be had here for a device and a precision, the preferred ones first."""
    kind = torch.device(device).type
    order = dict.fromkeys((*_PREFERRED.get(kind, ()), *ENGINES))
    return [engine for engine in order if precision in _CAN.get((engine, kind), ()) and not _missing(engine, precision)]


def _plan(engine: str, precision: str, device: torch.device, threads: int | None) -> Plan:
    if engine != "auto" and engine not in ENGINES:
        raise ValueError(f"there is no engine {engine!r}; known: auto, {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise ValueError(f"there is no precision {precision!r}; known: {', '.join(PRECISIONS)}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads must be a whole number from 1 up, got {threads!r}")
    if engine == "auto":
        engine = _choose(precision, device.type)
    can = _CAN.get((engine, device.type))
    if can is None:
        raise ValueError(f"the {engine} engine does not run on {device.type}: move the model to the CPU first")
    if precision not in can:
        raise ValueError(f"the {engine} engine has no {precision} on {device.type}, only {', '.join(can)}")
    if missing := _missing(engine, precision):
        raise ImportError(
            f"the {engine} engine needs {', '.join(missing)} for {precision}: "
            f'pip install "hardnet[{"int8" if "nncf" in missing else engine}]"'
        )
    if precision == "bf16" and device.type == "cpu" and not _cpu_has_bf16():
        raise ValueError("this processor does not compute in bf16, it would be slower than fp32")
    return Plan(engine, precision, device, threads or torch.get_num_threads())


def _choose(precision: str, device: str) -> str:
    able = [name for name in _PREFERRED.get(device, ()) if precision in _CAN[name, device]]
    if not able:
        raise ValueError(f"no engine computes in {precision} on {device}")
    for name in able:
        if not _missing(name, precision):
            return name
    return able[0]  # its absence is then explained


def _missing(engine: str, precision: str) -> list[str]:
    wanted = _NEEDS.get(engine, ()) + (_NEEDS_FOR_INT8.get(engine, ()) if precision == "int8" else ())
    return [package for package in wanted if find_spec(package) is None]


def _calibration(precision: str, calibration: Iterable[Tensor] | None) -> list[Tensor]:
    if precision != "int8":
        if calibration is not None:
            raise ValueError(f"calibration goes with precision='int8', not {precision!r}")
        return []
    batches = list(calibration or ())
    if not sum(map(len, batches)):
        raise ValueError("int8 needs calibration=: some batches of typical input, (N, C, H, W), a few hundred pictures")
    return batches


def _cpu_has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
