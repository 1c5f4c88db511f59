"""torch.compile and AOTInductor: code generated for this processor and these weights."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.network import ImageModule
from .base import Output, Plan, Run
from .cache import fingerprint, from_artifact
from .folding import fold
from .merged import merge
from .native import DTYPES, cpu_threads, in_channels_last

_one_at_a_time = threading.Lock()
"""Whether weights are taken for constants is a setting of the whole process."""


def build(model: ImageModule, plan: Plan, example: Tensor | None, calibration: list[Tensor]) -> Run:
    """Compile on the first call of a shape, in this process: from some seconds to a minute."""
    dtype = DTYPES[plan.precision]
    folded = fold(model).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if plan.device.type == "cuda":
        return in_channels_last(torch.compile(folded, mode="max-autotune"), dtype)
    if dtype == torch.float32:  # in fewer bits, sums of parts lose more
        merge(folded)
    # The calls of the kernels are C++, not Python.
    compiled = in_channels_last(torch.compile(folded, options={"cpp_wrapper": True}), dtype)
    seen: set[torch.Size] = set()

    def run(x: Tensor) -> Output:
        with cpu_threads(plan.threads):
            if x.shape in seen:
                return compiled(x)
            # Weights as constants are laid out once. torch 2.14 looks at this before it looks at the options.
            with _one_at_a_time, torch._inductor.config.patch(freezing=True):
                output = compiled(x)
            seen.add(x.shape)
            return output

    return run


def build_packaged(model: ImageModule, plan: Plan, example: Tensor | None, calibration: list[Tensor]) -> Run:
    """Load the package of AOTInductor from the cache, or compile it, once and for all, for pictures of one size."""
    if example is None:
        raise ValueError("the aoti engine compiles ahead of time: example_input= must tell the shape of the images")
    dtype = DTYPES[plan.precision]
    key = fingerprint(model, "aoti", plan.precision, tuple(example.shape[1:]), _processor(plan.device))

    def compile_into(folder: Path) -> None:
        compile_package(fold(model).to(dtype), folder / "model.pt2", example.to(dtype))

    def load(folder: Path) -> Any:
        return torch._inductor.aoti_load_package(str(folder / "model.pt2"))

    package = from_artifact(key, compile_into, load)
    height, width = example.shape[2:]
    several = hasattr(model, "feature_info")

    def run(x: Tensor) -> Output:
        if x.shape[2:] != (height, width):
            raise ValueError(f"this aoti engine was compiled for images of {height}x{width}, got {tuple(x.shape)}")
        with cpu_threads(plan.threads):
            output = package(x.to(dtype).contiguous())  # compiled code takes the order in memory for granted
        return [each.float() for each in output] if several else output.float()

    return run


class _InChannelsLast(nn.Module):
    """Takes images whose channels come first in memory, and computes with them last: (N, C, H, W) as the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.train(model.training)

    def forward(self, x: Tensor) -> Output:
        output: Output = self.model(x.contiguous(memory_format=torch.channels_last))
        return output


def compile_package(folded: nn.Module, path: Path, example: Tensor, metadata: dict[str, str] | None = None) -> None:
    """Write a folded model as a package of AOTInductor, for any number of images of the example's size."""
    images = example.expand(2, *example.shape[1:]) if len(example) < 2 else example  # 1 would be taken for a constant
    images = images.contiguous()
    options = {"freezing": True, "aot_inductor.metadata": metadata or {}}
    with torch.no_grad():
        program = torch.export.export(
            _InChannelsLast(folded), (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False
        )
        buffer = io.BytesIO()  # on a full disk, torch's own writer of files would end the process
        torch._inductor.aoti_compile_and_package(program, package_path=buffer, inductor_configs=options)
    path.write_bytes(buffer.getbuffer())


def _processor(device: torch.device) -> str:
    """Return what compiled code depends on beside the model: it may not run on another processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability()
