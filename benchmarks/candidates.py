"""Build what a row names: the network in its engine, its input, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.photographs import calibration_images
from benchmarks.rows import BASELINE, FLOOR, OURS, Row
from hardnet.cli.benchmark import settle
from hardnet.engines import ENGINES, accelerate, available_engines
from hardnet.factory import DEFAULT_TAG, create_model
from hardnet.models.config import CONFIGS
from hardnet.models.cost import measure_cost
from hardnet.weights.catalog import CATALOG

Step = Callable[[], object]
"""One forward pass, finished when it returns."""
MATRIX_SIDES = {"cpu": (1024, 1536, 2048), "cuda": (2048, 4096, 8192)}


def build(row: Row, *, threads: int | None, device: str, photographs: Path | None) -> Step:
    """Build the network of a row in its engine and return its forward pass on one fixed batch.

    Weights are random and seeded.

    Args:
        row: what to build; not the matrix multiplication.
        threads: CPU threads of the engine; None is the default of the engine.
        device: where to run.
        photographs: a folder of images to calibrate int8 on.

    Raises:
        ImportError: a package is missing.
        NotImplementedError: the engine does not have this precision.
    """
    model = network(row)
    settle(model, row.height, row.width)
    model = model.eval().to(device)
    images = torch.randn(row.batch_size, 3, row.height, row.width, generator=torch.Generator().manual_seed(1))
    images = images.to(device)
    call = accelerated(model, row, images, threads, photographs) if row.source == OURS else model
    return partial(_run, call, images)


def _run(call: Callable[..., Any], *inputs: Tensor) -> Any:
    with torch.inference_mode():
        output = call(*inputs)
    if inputs[0].is_cuda:
        torch.cuda.synchronize(inputs[0].device)
    return output


def network(row: Row) -> nn.Module:
    """Return the network of a row with random weights.

    Raises:
        ImportError: its package is missing.
    """
    torch.manual_seed(0)
    if row.source == OURS:
        return create_model(row.model)
    if row.source == BASELINE:
        from pytorchcv.model_provider import get_model

        model = get_model(row.model)
        if (row.height, row.width) != (224, 224):  # its last pooling is made for 224 x 224 pixels only
            model.get_submodule("features").final_pool = nn.AdaptiveAvgPool2d(1)
        return model
    if row.source == "torchvision":
        import torchvision

        return torchvision.models.get_model(row.model, weights=None)
    import timm

    return timm.create_model(row.model)


def accelerated(model: nn.Module, row: Row, images: Tensor, threads: int | None, photographs: Path | None) -> nn.Module:
    """Return one of our models in the engine of the row; see :func:`build` for arguments and errors."""
    if row.engine == "eager" and row.precision == "fp32":
        return model
    options: dict[str, Any] = {"engine": row.engine, "precision": row.precision, "threads": threads}
    if row.engine in ENGINES and row.engine not in available_engines(images.device, row.precision):
        try:
            accelerate(model, **options, calibration=[images] if row.precision == "int8" else None)
        except ValueError as error:
            raise NotImplementedError(str(error)) from None
    if row.precision == "int8":
        options["calibration"] = calibration_images(photographs, row.height, row.width, row.batch_size)
    return accelerate(model, example_input=images, **options)


def macs(row: Row) -> int:
    """Return the multiply-accumulates of the network of a row for one image, computed on the meta device."""
    if row.model in CONFIGS:
        return measure_cost(CONFIGS[row.model], height=row.height, width=row.width).total.macs
    return count_macs(partial(network, row), row.height, row.width)


def count_macs(make: Callable[[], nn.Module], height: int, width: int) -> int:
    """Return the multiply-accumulates of any network for one image, as counted by torch."""
    with torch.device("meta"), torch.no_grad():
        model = make().eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, height, width))
    return int(counter.get_total_flops()) // 2


def reported_top1_error(row: Row) -> float | None:
    """Return the reported top-1 error on ImageNet in per cent, None if there is none (int8, timm).

    HarDNet's is reported by its authors (IMAGENET1K_V1), torchvision's in the metadata of its weights.
    """
    if row.precision == "int8" or row.source == FLOOR:
        return None
    if (row.model, DEFAULT_TAG) in CATALOG:
        return CATALOG[row.model, DEFAULT_TAG].top1_error
    if row.source != "torchvision":
        return None
    import torchvision

    meta = torchvision.models.get_model_weights(row.model)[DEFAULT_TAG].meta
    return round(100 - float(meta["_metrics"]["ImageNet-1K"]["acc@1"]), 2)


def fastest_product(device: str, sides: tuple[int, ...] | None = None) -> tuple[Step, dict[str, Any]]:
    """Return the fastest multiplication of square float32 matrices, and facts about it: the roofline of the tables.

    Tried are several sizes, by ``torch.mm`` and by a 1x1 convolution, which is a matrix multiplication too.
    """
    tried: list[tuple[float, str, int, Step]] = []
    for side in sides or MATRIX_SIDES[torch.device(device).type]:
        height = next(n for n in range(int(side**0.5), 0, -1) if side % n == 0)
        pixels = torch.randn(1, side, height, side // height, device=device).to(memory_format=torch.channels_last)
        kernel = torch.randn(side, side, 1, 1, device=device).to(memory_format=torch.channels_last)
        first, second, product = (torch.randn(side, side, device=device) for _ in range(3))
        steps = {
            "mm": partial(_run, partial(torch.mm, out=product), first, second),
            "convolution": partial(_run, functional.conv2d, pixels, kernel),
        }
        tried += [(2 * side**3 / _best_time(step) / 1e9, how, side, step) for how, step in steps.items()]
    tried.sort(key=lambda product: product[0])
    _, how, side, step = tried[-1]
    best = {how: round(rate, 1) for rate, how, _, _ in tried}
    return step, {"how": how, "side": side, "operations": 2 * side**3, "best_gflops": best}


def _best_time(step: Step) -> float:
    times = []
    for _ in range(4):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times)
