"""A row ─▶ something that can be run: the networks, their input, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rows import BASELINE, FLOOR, OURS, Row
from hardnet.factory import DEFAULT_TAG, create_model
from hardnet.models.config import CONFIGS
from hardnet.models.cost import measure_cost
from hardnet.models.network import HarDNet
from hardnet.weights.catalog import CATALOG

Step = Callable[[], object]
"""One forward pass, finished when it returns."""

_SETTLING = (4, 224)
"""Images, and the most pixels of their sides, from which the normalisation statistics are taken."""


def build(row: Row, *, threads: int | None, device: str, photographs: Path | None) -> Step:
    """Build the network of a row on its engine and return its forward pass on one fixed batch.

    Weights are random (seeded): time does not depend on them, once the statistics of the normalisation layers are
    set from random images, so that the values stay in the range of a trained network.

    Args:
        row: what to build; not the floor.
        threads: of the engine; None leaves it its own default.
        device: where to run.
        photographs: a folder of images to calibrate int8 on.

    Raises:
        ImportError: a package is missing.
        NotImplementedError: the engine does not have this precision.
        ValueError: int8 and no photographs to calibrate on.
    """
    model = network(row)
    settle(model, min(row.height, _SETTLING[1]), min(row.width, _SETTLING[1]))
    model = model.eval().to(device)
    images = torch.randn(row.batch_size, 3, row.height, row.width, generator=torch.Generator().manual_seed(1))
    images = images.to(device)
    call = accelerated(model, row, images, threads, photographs) if row.source == OURS else _peer(model, row.engine)

    def step() -> object:
        with torch.inference_mode():
            output = call(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return output

    return step


def network(row: Row) -> nn.Module:
    """Return the row's network with random weights.

    Raises:
        ImportError: its package is missing.
    """
    torch.manual_seed(0)
    if row.source == OURS:
        return create_model(row.model)
    if row.source == BASELINE:
        from pytorchcv.model_provider import get_model  # type: ignore[import-not-found,import-untyped,unused-ignore]

        model: nn.Module = get_model(row.model)
        if (row.height, row.width) != (224, 224):  # its last pooling is made for 224 x 224 pixels alone
            model.get_submodule("features").final_pool = nn.AdaptiveAvgPool2d(1)
        return model
    if row.source == "torchvision":
        import torchvision  # type: ignore[import-untyped]

        peer: nn.Module = torchvision.models.get_model(row.model, weights=None)
        return peer
    import timm

    return timm.create_model(row.model)


def settle(model: nn.Module, height: int, width: int) -> None:
    """Set the statistics of the normalisation layers from random images, on the CPU."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, here one
    with torch.no_grad():
        model.train()(torch.randn(_SETTLING[0], 3, height, width, generator=torch.Generator().manual_seed(0)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def accelerated(model: nn.Module, row: Row, images: Tensor, threads: int | None, photographs: Path | None) -> nn.Module:
    """Return one of our models on the row's engine; see :func:`build` for arguments and errors."""
    if row.engine == "eager" and row.precision == "fp32":
        return model
    from hardnet.engines import ENGINES, accelerate, available_engines

    assert isinstance(model, HarDNet)  # noqa: S101  (the row is one of ours; for the type checker)
    if row.engine in ENGINES and row.engine not in available_engines(images.device, row.precision):
        _explain_absence(model, row, threads)
    calibration = None
    if row.precision == "int8":
        from benchmarks.photographs import calibration_images

        calibration = calibration_images(photographs, row.height, row.width, row.batch_size)
    return accelerate(
        model,
        engine=row.engine,
        precision=row.precision,
        example_input=images,
        threads=threads,
        calibration=calibration,
    )


def _explain_absence(model: HarDNet, row: Row, threads: int | None) -> None:
    """Turn what ``accelerate`` says of a precision that this engine has not into a reason to leave the row out."""
    from hardnet.engines import accelerate

    nothing_yet = [torch.zeros(1, 3, row.height, row.width)] if row.precision == "int8" else None
    try:
        accelerate(model, engine=row.engine, precision=row.precision, threads=threads, calibration=nothing_yet)
    except ValueError as error:
        raise NotImplementedError(str(error)) from None


def _peer(model: nn.Module, engine: str) -> Callable[[Tensor], Any]:
    if engine == "eager":
        return model
    import torch._inductor.config as inductor

    inductor.freezing = True
    return torch.compile(model)


def macs(row: Row) -> int:
    """Return the multiply-accumulates of the row's network for one image; nothing is computed.

    Raises:
        ImportError: its package is missing.
    """
    if row.model in CONFIGS:
        return measure_cost(CONFIGS[row.model], height=row.height, width=row.width).total.macs
    return count_macs(partial(network, row), row.height, row.width)


def count_macs(make: Callable[[], nn.Module], height: int, width: int) -> int:
    """Return the multiply-accumulates of any network for one image, as torch counts its operations."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        model = make().eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, height, width))
    return int(counter.get_total_flops()) // 2


def reported_top1_error(row: Row) -> float | None:
    """Return the top-1 error on ImageNet that is reported for the row's network, in per cent; None where we have none.

    HarDNet's is the authors' (IMAGENET1K_V1), torchvision's stands in its weights' metadata. int8 has none: what is
    reported was measured in floating point.
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
