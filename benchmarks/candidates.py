"""Build what a row names: the network in its engine, its input, its cost and its reported errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from benchmarks.photographs import calibration_images
from benchmarks.rows import BASELINE, OURS, Row
from hardnet.engines import ENGINES, accelerate, available_engines
from hardnet.engines.timing import settle
from hardnet.engines.torch_engine import cpu_threads
from hardnet.factory import create_model
from hardnet.images.preprocess import Preprocessing
from hardnet.models.config import CONFIGS
from hardnet.models.cost import measure_cost
from hardnet.models.network import ImageModule
from hardnet.weights.catalog import CATALOG

TIMM_TOP1_ERRORS = {"ese_vovnet39b": 20.7}
"""timm, docs/changes.md, 11 June 2020: "trained to 79.3 top-1"."""


def build(row: Row, *, threads: int | None, device: str, photographs: Path | None) -> Callable[[Tensor], Any]:
    """Build the network of a row in its engine and return its forward pass, finished when it returns.

    Weights are random and seeded.

    Args:
        row: what to build.
        threads: CPU threads of the engine; None is the default of the engine.
        device: where to run.
        photographs: a folder of images to calibrate int8 on.

    Raises:
        ImportError: a package is missing.
        NotImplementedError: the engine does not have this precision.
    """
    model = network(row)
    with cpu_threads(1):  # equal statistics on every run: conversions are cached by the weights
        settle(model, 224, 224)
    model = model.eval().to(device)
    images = images_of(row.shape, device)
    call = model if row.source == BASELINE else accelerated(model, row, images, threads, photographs)
    return partial(_run, call)


def images_of(shape: Sequence[int], device: str) -> Tensor:
    """Return random images, always the same: images, height and width -> (N, 3, H, W)."""
    count, height, width = shape
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1)).to(device)


def _run(call: Callable[[Tensor], Any], images: Tensor) -> Any:
    with torch.inference_mode():
        output = call(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return output


class Peer(ImageModule):
    """A network of another family, with what the engines require of a model: (N, 3, H, W) -> (N, classes)."""

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__(replace(CONFIGS["hardnet39ds"], name=name), 3)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes)."""
        output: Tensor = self.network(x)
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
        model.get_submodule("features").final_pool = nn.AdaptiveAvgPool2d(1)  # its own is for 224 x 224 pixels only
        return model
    if row.source == "torchvision":
        import torchvision

        return torchvision.models.get_model(row.model, weights=None)
    import timm

    return timm.create_model(row.model)


def accelerated(
    model: nn.Module,
    row: Row,
    images: Tensor,
    threads: int | None,
    photographs: Path | None,
    preprocessing: Preprocessing | None = None,
) -> nn.Module:
    """Return a network in the engine of the row; see :func:`build` for arguments and errors."""
    if row.engine == "eager" and row.precision == "fp32":
        return model
    if row.source != OURS:
        model = Peer(row.model, fuse(model))
    options: dict[str, Any] = {"engine": row.engine, "precision": row.precision, "threads": threads}
    if row.engine in ENGINES and row.engine not in available_engines(images.device, row.precision):
        try:
            accelerate(model, **options, calibration=[images] if row.precision == "int8" else None)
        except ValueError as error:
            raise NotImplementedError(str(error)) from None
    if row.precision == "int8":
        options["calibration"] = calibration_images(photographs)
    return accelerate(model, example_input=images, preprocessing=preprocessing, **options)


def cost(row: Row) -> dict[str, Any]:
    """Return the multiply-accumulates of the network for one image of 224 x 224, and its reported errors."""
    if row.model in CONFIGS:
        macs = measure_cost(CONFIGS[row.model]).total.macs
    else:
        macs = count_macs(partial(network, row), 224, 224)
    first, lowest = reported_top1_errors(row.source, row.model)
    return {"macs": macs, "reported_top1_error": first, "lowest_reported_top1_error": lowest}


def count_macs(make: Callable[[], nn.Module], height: int, width: int) -> int:
    """Return the multiply-accumulates of any network for one image, as counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        model = make().eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, height, width))
    return int(counter.get_total_flops()) // 2


def reported_top1_errors(source: str, model: str) -> tuple[float, float]:
    """Return reported top-1 errors on ImageNet in per cent: of the first published weights, and the lowest of all.

    HarDNet's are those of :mod:`hardnet.weights.catalog`, torchvision's in the metadata of its weights.
    """
    if source == "torchvision":
        import torchvision

        metrics = [each.meta["_metrics"] for each in torchvision.models.get_model_weights(model)]
        errors = [round(100 - float(each["ImageNet-1K"]["acc@1"]), 2) for each in metrics]
    elif source == "timm":
        errors = [TIMM_TOP1_ERRORS[model]]
    else:
        keys = [key for key in CATALOG if key[0] == model and key[1].startswith("IMAGENET1K")]
        errors = [CATALOG[key].top1_error for key in keys]
    return errors[0], min(errors)
