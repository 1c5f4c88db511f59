"""torch.compile, and packages of AOTInductor: code generated for this processor and these weights."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import torch
from torch import Tensor, nn

from ..models.network import ImageModule
from .base import Output, Plan, Run, normalising
from .folding import fold, merge
from .torch_engine import DTYPES, cpu_threads, in_channels_last

_LOCK = threading.Lock()
"""Freezing is a setting of the whole process."""


def build(model: ImageModule, plan: Plan, calibration: list[Tensor]) -> Run:
    """Compile on the first call of each shape: from some seconds to a minute."""
    dtype = DTYPES[plan.precision]
    folded = fold(model).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if plan.device.type == "cuda":
        return normalising(in_channels_last(torch.compile(folded, mode="max-autotune"), dtype), plan.preprocessing)
    if dtype == torch.float32:  # in lower precision, sums of parts lose accuracy
        merge(folded)
    # The kernels are called from C++, not from Python.
    compiled = in_channels_last(torch.compile(folded, options={"cpp_wrapper": True}), dtype)
    seen: set[torch.Size] = set()

    def run(x: Tensor) -> Output:
        with cpu_threads(plan.threads):
            if x.shape in seen:
                return compiled(x)
            # Frozen weights are reordered once. torch 2.14 reads this setting before it reads the options.
            with _LOCK, torch._inductor.config.patch(freezing=True):
                output = compiled(x)
            seen.add(x.shape)
            return output

    return normalising(run, plan.preprocessing)


class _InChannelsLast(nn.Module):
    """Take images with channels first in memory, compute with channels last: (N, C, H, W) -> output of the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.train(model.training)

    def forward(self, x: Tensor) -> Output:
        output: Output = self.model(x.contiguous(memory_format=torch.channels_last))
        return output


def compile_package(folded: nn.Module, path: Path, example: Tensor, metadata: dict[str, str] | None = None) -> None:
    """Write a folded model as a package of AOTInductor, for any number of images of the example's size."""
    images = example.expand(2, *example.shape[1:]) if len(example) < 2 else example  # 1 would become a constant
    images = images.contiguous()
    options = {"freezing": True, "aot_inductor.metadata": metadata or {}}
    with torch.no_grad():
        program = torch.export.export(
            _InChannelsLast(folded), (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False
        )
        buffer = io.BytesIO()  # torch's own file writer aborts the process on a full disk
        torch._inductor.aoti_compile_and_package(program, package_path=buffer, inductor_configs=options)
    path.write_bytes(buffer.getbuffer())
