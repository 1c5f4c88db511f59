"""``hardnet.accelerate``: choose an engine and a precision, check that they are available, build the engine."""

import logging
import math
import sys
import threading
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..images.preprocess import Preprocessing
from ..models.network import ImageModule
from ..utils.devices import cpu_flags
from ..utils.validation import check_count
from . import onnx, openvino, torch_engine
from .base import Accelerated, EngineSettings, Run, completed, difference, random_images
from .calibration import check_batches
from .folding import evaluation_copy

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
"""Values of ``precision=``. Not every engine has each of them."""


class Engine(NamedTuple):
    """One row of the table of engines."""

    build: Callable[[ImageModule, EngineSettings, list[Tensor]], Run]  # from a model in evaluation mode
    precisions: dict[str, tuple[str, ...]]  # by the type of the device
    packages: tuple[str, ...] = ()  # optional ones; an engine without any computes with torch
    int8_packages: tuple[str, ...] = ()  # further ones for int8
    takes_pixels: bool = False  # True if it scales and normalises uint8 images itself


# "auto" prefers the later ones: on CPUs they are faster, as measured in benchmarks/README.md. No GPU was measured.
_TABLE = {
    "eager": Engine(lambda model, *_: model, {"cpu": ("fp32",), "cuda": ("fp32",)}),
    "torch": Engine(torch_engine.build, {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}),
    "onnxruntime": Engine(onnx.build, {"cpu": ("fp32", "int8")}, ("onnxruntime", "onnx", "onnxscript")),
    "openvino": Engine(openvino.build, {"cpu": ("fp32", "bf16", "int8")}, ("openvino",), ("nncf",), takes_pixels=True),
}
EAGER_UP_TO, TORCH_UP_TO = 32, 10_000
"""Images up to which, on CPUs, building the engine "torch", and converting for another one, do not pay off."""
_COMPILE_AFTER = 256  # images of a shape, after which compiling a graph pays off
_TOLERANCES = {"fp32": 1e-4, "bf16": 0.5, "fp16": 0.5, "int8": sys.float_info.max}  # bf16 with random weights: 0.1
"""Largest difference of an engine from the model, relative to the largest value; int8 is compared when calibrated."""

ENGINES = tuple(_TABLE)
"""Values of ``engine=``, in addition to "auto"."""


def accelerate(
    model: ImageModule,
    *,
    engine: str = "auto",
    precision: str = "fp32",
    example_input: Tensor | None = None,
    threads: int | None = None,
    calibration: Iterable[Tensor] | None = None,
    preprocessing: Preprocessing | None = None,
    check: bool = True,
) -> Accelerated:
    """Return a model in a faster engine: the same signature and output, for evaluation only.

    Args:
        model: a network of this library, on the device where it is to run. It is not changed.
        engine: "torch" needs no other package; "onnxruntime" and "openvino" need the extras of the same name; "eager"
            is the model itself. "auto" prefers OpenVINO, then ONNX Runtime, then "torch"; the log names the choice.
        precision: "fp32"; "bf16" on x86 processors that have it, in Linux; "fp16" on CUDA; "int8" with ``calibration``.
        example_input: a batch of the most frequent shape, (N, in_chans, H, W), for which the engine is then prepared.
        threads: CPU threads; None uses torch's number.
        calibration: for int8, some batches of typical input, prepared as for the model; a few hundred images.
        preprocessing: with it the engine takes uint8 images as well, (N, 3, H, W), which it scales and normalises;
            None takes the model's own, if it has one.
        check: compare the output with the model's; False is for timing random weights.

    Raises:
        TypeError: the model is not one of this library, or ``calibration`` has something else than tensors.
        ValueError: an engine or precision that does not exist here; ``calibration`` that is missing or not prepared as
            for the model; int8 that changes the label of more than one in ten of its images; a layer that no engine can
            run, which is named; an engine whose output is not the model's.
        ImportError: a package is missing; the message names the extra.
    """
    if not isinstance(model, ImageModule):
        raise TypeError(f"only models of this library can be accelerated, got {type(model).__name__}")
    device = next(model.parameters()).device
    engine = _choose(engine, precision, device.type)
    if precision == "bf16" and device.type == "cpu" and not cpu_has_bf16():
        raise ValueError("bf16 on the CPU takes Linux and an x86 processor that computes in it")
    if threads is not None:
        check_count("threads", threads, least=1)
    batches = check_batches(model, calibration, precision)
    reference = evaluation_copy(model).float()
    normalise = preprocessing or (model.preprocessing if model.in_chans == 3 else None)
    # The expected kind of input is tried: an engine may prepare the other one when it is needed.
    side, pixels = max(64, model.min_input_size), preprocessing is not None
    sample = random_images(1, model.in_chans, side, side + 32, pixels).to(device)
    with torch.inference_mode(False), torch.no_grad():
        expected = reference(preprocessing.normalise(sample) if preprocessing is not None else sample)
    row, count, on_cpu = _TABLE[engine], threads or torch.get_num_threads(), device.type == "cpu"
    compile_after = 0 if example_input is not None else _COMPILE_AFTER
    several = not isinstance(expected, Tensor)
    settings = EngineSettings(engine, precision, device, count, compile_after, normalise, several, check)
    run = completed(
        row.build(reference, settings, batches),
        None if row.takes_pixels else normalise,
        torch_threads=count if on_cpu and not row.packages else None,
        sliced=on_cpu and engine != "eager",
    )
    result = Accelerated(model, run, settings)
    error = difference(result(sample), expected) if check else 0.0
    if not error <= _TOLERANCES[precision]:
        raise ValueError(
            f"the {engine} engine does not compute what {model.config.name} computes, the difference is {error:.1e} of "
            "the largest value: run the model itself, or undo what was changed in its layers"
        )
    faster = _faster(model, precision) if on_cpu else precision
    advice = "" if faster == precision else f"; {faster} is faster here"
    logger.info("%s runs in %s, %s, on %s%s", model.config.name, engine, precision, device, advice)
    if example_input is not None:
        for _ in range(2):  # the torch engine compiles when a shape comes a second time
            result(example_input)
    return result


def _faster(model: ImageModule, precision: str) -> str:
    """Return the fastest precision that is possible here; the given one if none is faster on this processor."""
    order = ["int8", "bf16", "fp32"]
    if openvino.cpu_has_amx_int8() and getattr(model.config, "depthwise", False):
        order = ["bf16", "int8", "fp32"]  # depthwise convolutions stay in float32
    possible = [name for name in order if available_engines("cpu", name) and (name != "bf16" or cpu_has_bf16())]
    return next(name for name in order if name in (*possible, precision))


def choose_engine(model: nn.Module, precision: str = "fp32", images: int | None = None) -> str:
    """Choose "eager" up to 32 images, "torch" up to 10,000, beyond (or for None) the fastest installed engine.

    Precisions other than fp32 always get the fastest installed engine that has them. On CUDA, fp32 is always "eager".
    """
    device = next(model.parameters()).device.type
    count = math.inf if images is None else images
    if precision != "fp32" or (device == "cpu" and count > TORCH_UP_TO):
        return _choose("auto", precision, device)
    return "torch" if device == "cpu" and count > EAGER_UP_TO else "eager"


class EngineCache:
    """The engines among which "auto" chooses for one model, each built when it is first needed.

    Threads may share it. The model must not be changed. With ``preprocessing``, the engines take uint8 images as well.
    """

    def __init__(self, model: Any, preprocessing: Preprocessing | None = None) -> None:
        self._model, self.preprocessing = model, preprocessing
        on_cpu = next(model.parameters()).device.type == "cpu"
        self._runs = {"eager": completed(model, preprocessing, sliced=on_cpu)}
        self._lock = threading.Lock()

    def for_images(self, images: int | None, engine: str | None = None) -> tuple[str, Run]:
        """Return the name of the engine for a number of images, None for many, and the function that runs it.

        A named ``engine`` is taken in place of the choice. One that cannot be built is replaced by PyTorch, with one
        warning in the log. The function takes (N, C, H, W) and returns the output of the model.
        """
        engine = engine or choose_engine(self._model, images=images)
        with self._lock:
            run = self._runs.get(engine) or self._build(engine)
        return run.engine if isinstance(run, Accelerated) else "eager", run

    def _build(self, engine: str) -> Run:
        try:
            run: Run = accelerate(self._model, engine=engine, preprocessing=self.preprocessing)
        except Exception as error:  # whatever an optional package raises
            logger.warning("the %s engine is not available, using PyTorch instead: %s", engine, error)
            run = self._runs["eager"] if engine == "torch" else self._runs.get("torch") or self._build("torch")
        self._runs[engine] = run
        return run


def available_engines(device: str | torch.device = "cpu", precision: str = "fp32") -> list[str]:
    """Return the installed engines for a device and a precision, the preferred ones first."""
    return [engine for engine in _able(precision, torch.device(device).type) if _installed(engine, precision)]


def _choose(engine: str, precision: str, device: str) -> str:
    """Return the engine that "auto" stands for, or the named one; ValueError if there is none."""
    if engine != "auto" and engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; known: auto, {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    able = [name for name in _able(precision, device) if engine in ("auto", name)]
    if not able:
        subject = "no engine computes" if engine == "auto" else f"the engine {engine!r} does not compute"
        raise ValueError(f"{subject} in {precision} on {device}")
    # If none is installed, building the first one says which package is missing.
    return next((name for name in able if _installed(name, precision)), able[0])


def cpu_has_bf16() -> bool:
    """Return whether the processor computes in bf16 (x86 on Linux; else False)."""
    return bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def _able(precision: str, device: str) -> list[str]:
    return [engine for engine in reversed(ENGINES) if precision in _TABLE[engine].precisions.get(device, ())]


def _installed(engine: str, precision: str) -> bool:
    row = _TABLE[engine]
    return all(map(find_spec, row.packages + (row.int8_packages if precision == "int8" else ())))
