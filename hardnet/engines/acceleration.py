"""``hardnet.accelerate``: choose an engine and a precision, check that they are available, build the engine."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.util import find_spec
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..images.preprocess import Preprocessing
from ..models.network import ImageModule
from ..utils.validation import check_count
from . import onnx, openvino, torch_engine
from .base import Accelerated, Plan, Run, in_slices, normalising

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
"""What ``precision=`` may be. Not every engine has each of them."""

CALIBRATION_IMAGES = 256
"""How many images are enough to calibrate int8."""


class Engine(NamedTuple):
    """One row of the table of engines."""

    build: Callable[[ImageModule, Plan, list[Tensor]], Run]
    cpu: tuple[str, ...]
    """Precisions on the CPU."""
    cuda: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    """Optional packages."""
    int8_packages: tuple[str, ...] = ()
    """Further ones for int8."""


_TABLE = {
    "eager": Engine(torch_engine.build_eager, ("fp32",), ("fp32",)),
    "torch": Engine(torch_engine.build, ("fp32", "bf16"), ("fp32", "bf16", "fp16")),
    "onnxruntime": Engine(onnx.build, ("fp32", "int8"), ("fp32",), ("onnxruntime", "onnx", "onnxscript")),
    "openvino": Engine(openvino.build, ("fp32", "bf16", "int8"), (), ("openvino",), ("nncf",)),
}
FEW, MANY = 32, 10_000
"""Images after which building the "torch" engine, and converting for another one, pay off on CPUs."""
_PATIENCE = 256
"""Images of a shape after which compiling a graph pays off."""

ENGINES = tuple(_TABLE)
"""What ``engine=`` may be, in addition to "auto"."""

# On CPUs the fastest first, as measured in benchmarks/README.md. On CUDA nothing was measured.
_PREFERRED = {"cpu": ("openvino", "onnxruntime", "torch"), "cuda": ("torch",)}


def accelerate(
    model: ImageModule,
    *,
    engine: str = "auto",
    precision: str = "fp32",
    example_input: Tensor | None = None,
    threads: int | None = None,
    calibration: Iterable[Tensor] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Accelerated:
    """Return a model in a faster engine: the same signature and output, for evaluation only.

    Args:
        model: a classifier or a feature pyramid of this library, on the device where it is to run. It is not changed.
        engine: "torch" needs no other package; "onnxruntime" and "openvino" need the extras of the same name; "eager"
            is the model itself. "auto" is the fastest one that is installed; the log says which.
        precision: "fp32"; "bf16" if the processor has it; "fp16" on CUDA; "int8" with ``calibration``.
        example_input: a batch of the most frequent shape, (N, in_chans, H, W), for which the engine is prepared at
            once. Other shapes work as well.
        threads: CPU threads; None uses torch's number.
        calibration: for int8, some batches of typical input, prepared as for the model; a few hundred images.
        preprocessing: makes the engine take uint8 images as well, (N, 3, H, W), which it scales and normalises.

    Raises:
        TypeError: the model is not one of this library.
        ValueError: an unknown engine or precision, a combination that does not exist, int8 without calibration, or an
            ``example_input`` of a wrong shape.
        ImportError: a package is missing; the message names the extra.
    """
    if not isinstance(model, ImageModule):
        raise TypeError(f"only models of this library can be accelerated, got {type(model).__name__}")
    device = next(model.parameters()).device
    plan = _plan(engine, precision, device, threads)
    patience = 0 if example_input is not None else _PATIENCE
    plan = replace(plan, patience=patience, preprocessing=preprocessing)
    batches = _calibration(precision, calibration)
    run = _TABLE[plan.engine].build(model, plan, batches)
    result = Accelerated(model, in_slices(run) if device.type == "cpu" and plan.engine != "eager" else run, plan)
    logger.info("%s runs in %s, %s, on %s", model.config.name, plan.engine, plan.precision, device)
    if example_input is not None:
        for _ in range(2):  # the torch engine compiles when a shape comes a second time
            result(example_input)
    return result


def choose_engine(model: nn.Module, precision: str = "fp32", images: int | None = None) -> str:
    """Choose "eager" up to 32 images, "torch" up to 10,000, beyond the fastest installed engine.

    Precisions other than fp32 always get the fastest installed engine that has them. On CUDA, fp32 is always "eager".

    Args:
        model: on the device where it is to run.
        precision: one of :data:`PRECISIONS`.
        images: how many images are to be computed; None means many.
    """
    device = next(model.parameters()).device.type
    if precision == "fp32" and (device != "cpu" or (images is not None and images <= FEW)):
        return "eager"
    return "torch" if precision == "fp32" and images is not None and images <= MANY else _choose(precision, device)


class EngineCache:
    """The engines among which "auto" chooses for one model, each built when it is first needed.

    Threads may share it. The model must not be changed.

    Args:
        model: on the device where it is to run.
        preprocessing: makes the engines take uint8 images as well, which they scale and normalise.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing | None = None) -> None:
        self._model, self.preprocessing = model, preprocessing
        run = normalising(model, preprocessing)
        self._runs: dict[str, Run] = {"eager": in_slices(run) if next(model.parameters()).device.type == "cpu" else run}
        self._lock = threading.Lock()

    def for_images(self, images: int | None, engine: str | None = None) -> tuple[str, Run]:
        """Return the name of the engine for a number of images, None for many, and the function that runs it.

        A named ``engine`` is taken in place of the choice.

        The function takes (N, C, H, W) and returns the output of the model. An engine that cannot be built is replaced
        by PyTorch, with one warning in the log.
        """
        engine = engine or choose_engine(self._model, images=images)
        with self._lock:
            run = self._runs.get(engine) or self._build(engine)
        return run.engine if isinstance(run, Accelerated) else "eager", run

    def _build(self, engine: str) -> Run:
        try:
            model = cast(ImageModule, self._model)  # checked by accelerate
            run: Run = accelerate(model, engine=engine, preprocessing=self.preprocessing)
        except Exception as error:  # whatever an optional package raises
            logger.warning("the %s engine is not available, using PyTorch instead: %s", engine, error)
            run = self._runs["eager"] if engine == "torch" else self._runs.get("torch") or self._build("torch")
        self._runs[engine] = run
        return run


def available_engines(device: str | torch.device = "cpu", precision: str = "fp32") -> list[str]:
    """Return the installed engines for a device and a precision, the preferred ones first."""
    kind = torch.device(device).type
    order = dict.fromkeys((*_PREFERRED.get(kind, ()), *ENGINES))
    return [engine for engine in order if precision in _precisions(engine, kind) and not _missing(engine, precision)]


def _plan(engine: str, precision: str, device: torch.device, threads: int | None) -> Plan:
    if engine != "auto" and engine not in ENGINES:
        raise ValueError(f"there is no engine {engine!r}; known: auto, {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise ValueError(f"there is no precision {precision!r}; known: {', '.join(PRECISIONS)}")
    if threads is not None:
        check_count("threads", threads, least=1)
    if engine == "auto":
        engine = _choose(precision, device.type)
    precisions = _precisions(engine, device.type)
    if not precisions:
        raise ValueError(f"the {engine} engine does not run on {device.type}, only on the CPU")
    if precision not in precisions:
        raise ValueError(f"the {engine} engine has no {precision} on {device.type}, only {', '.join(precisions)}")
    if missing := _missing(engine, precision):
        raise ImportError(
            f"the {engine} engine needs {', '.join(missing)} for {precision}: "
            f"pip install {' '.join(missing)} (or, from a checkout, "
            f'pip install ".[{"int8" if "nncf" in missing else engine}]")'
        )
    if precision == "bf16" and device.type == "cpu" and not cpu_has_bf16():
        raise ValueError("this processor does not compute in bf16, it would be slower than fp32")
    return Plan(engine, precision, device, threads or torch.get_num_threads())


def _choose(precision: str, device: str) -> str:
    able = [engine for engine in _PREFERRED.get(device, ()) if precision in _precisions(engine, device)]
    if not able:
        raise ValueError(f"no engine computes in {precision} on {device}")
    # Where none is installed, the caller reports what the first one needs.
    return next((engine for engine in able if not _missing(engine, precision)), able[0])


def _precisions(engine: str, device: str) -> tuple[str, ...]:
    row = _TABLE[engine]
    return {"cpu": row.cpu, "cuda": row.cuda}.get(device, ())


def _missing(engine: str, precision: str) -> list[str]:
    row = _TABLE[engine]
    packages = row.packages + (row.int8_packages if precision == "int8" else ())
    return [package for package in packages if find_spec(package) is None]


def _calibration(precision: str, calibration: Iterable[Tensor] | None) -> list[Tensor]:
    if precision != "int8":
        if calibration is not None:
            raise ValueError(f"calibration goes with precision='int8', not {precision!r}")
        return []
    batches = list(calibration or ())
    if not sum(map(len, batches)):
        raise ValueError("int8 needs calibration=: some batches of typical input, (N, C, H, W), a few hundred images")
    return batches


def cpu_has_bf16() -> bool:
    """Return whether the processor computes in bf16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
