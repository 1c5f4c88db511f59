"""The networks that are compared: ours, pytorchcv's HarDNets and other families, in engines; costs and errors."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import torch
import torchvision
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.photographs import calibration_images
from hardnet.engines import accelerate, available_engines
from hardnet.engines.base import cpu_threads
from hardnet.engines.timing import estimate_statistics
from hardnet.factory import create_model
from hardnet.images.preprocess import Preprocessing
from hardnet.models.config import CONFIGS
from hardnet.models.network import HarDNet, ImageModule
from hardnet.weights.catalog import CATALOG

Shape: TypeAlias = tuple[int, int, int]  # images, height and width
OURS, BASELINE = "hardnet", "pytorchcv"
PEERS = (
    *(("torchvision", name) for name in ("resnet50", "mobilenet_v2", "mobilenet_v3_large", "densenet121")),
    *(("torchvision", "efficientnet_b0"), ("timm", "ese_vovnet39b")),
)
"""Networks of other families: source and name."""
SEGMENTATION_PEERS = (
    *(("torchvision", f"{name}_mobilenet_v3_large") for name in ("lraspp", "deeplabv3")),
    ("segmentation_models_pytorch", "resnet18"),
)
"""Networks that fchardnet70 is compared with, the last one a U-Net on this encoder."""
TRAINING = ("training", "checkpointed-training")
"""Names for training steps in place of an engine; the second with gradient checkpointing."""


class Case(NamedTuple):
    """A network of a package in an engine and a precision, on batches of one shape."""

    source: str
    model: str
    engine: str
    precision: str
    batch_size: int
    height: int
    width: int

    @property
    def network(self) -> tuple[str, str, str, str]:
        """Source, model, engine and precision: one process runs all shapes of these."""
        return self[:4]

    @property
    def shape(self) -> Shape:
        """Images, height and width."""
        return self[4:]

    @property
    def size(self) -> str:
        """Height and width in pixels: ``224`` or ``512x1024``."""
        return str(self.height) if self.height == self.width else f"{self.height}x{self.width}"

    def __str__(self) -> str:
        name = self.model if self.source == OURS else f"{self.source}:{self.model}"
        return f"{name} {self.engine} {self.precision}, batch {self.batch_size}, {self.size}"


def compared_groups(
    models: Sequence[str], engines: Sequence[str], precisions: Sequence[str], shapes: Sequence[Shape]
) -> list[list[Case]]:
    """Return one group of cases per engine and precision: pytorchcv's models in eager mode, ours, other families.

    "torch" is measured with our models only: its graphs of oneDNN do not exist for some of the others, or are not
    exact. In groups of training steps, pytorchcv's models are trained too.
    """
    peers = PEERS if set(models) <= CONFIGS.keys() else SEGMENTATION_PEERS
    groups = []
    for engine, precision in product(engines, precisions):
        if engine in ("eager", *TRAINING) and precision != "fp32":
            continue
        baseline = TRAINING[0] if engine in TRAINING else "eager"
        networks = [(BASELINE, model, baseline, "fp32") for model in models if model in CONFIGS]
        networks += [(OURS, model, engine, precision) for model in models]
        networks += [(*peer, engine, precision) for peer in peers if engine != "torch"]
        groups.append([Case(*network, *shape) for shape in shapes for network in networks])
    return groups


def create_network(source: str, model: str) -> nn.Module:
    """Return a network with random weights, always the same; ImportError if its package is missing."""
    torch.manual_seed(0)
    if source == OURS:
        return create_model(model)
    if source == BASELINE:
        from pytorchcv.model_provider import get_model

        network = get_model(model)
        network.get_submodule("features").final_pool = nn.AdaptiveAvgPool2d(1)  # its own is for 224 x 224 pixels only
        return network
    if source == "torchvision":
        options = {"weights_backbone": None, "num_classes": 19} if (source, model) in SEGMENTATION_PEERS else {}
        return torchvision.models.get_model(model, weights=None, **options)
    if (source, model) in SEGMENTATION_PEERS:
        import segmentation_models_pytorch

        network = segmentation_models_pytorch.Unet(model, encoder_weights=None, classes=19)
        network.check_input_shape = lambda x: None  # which cannot be traced
        return network
    import timm

    return timm.create_model(model)


class Peer(ImageModule):
    """A network of another family, with what the engines require of a model: (N, 3, H, W) -> (N, classes)."""

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__(replace(CONFIGS["hardnet39ds"], name=name), 3)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes), or (N, classes, H, W)."""
        output = self.network(x)
        return torch.as_tensor(output["out"] if isinstance(output, dict) else output)


class TrainingStep(nn.Module):
    """Forward, backward and SGD on a batch of images, (N, 3, H, W). Our models run channels_last as in training."""

    def __init__(self, network: nn.Module, checkpointed: bool) -> None:
        super().__init__()
        self.layout = torch.channels_last if isinstance(network, HarDNet) else torch.contiguous_format
        if isinstance(network, HarDNet):
            network.set_grad_checkpointing(checkpointed)
        self.network = network.train().to(memory_format=self.layout)
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def forward(self, images: Tensor) -> None:
        """Do one step."""
        with torch.inference_mode(False):
            self.optimizer.zero_grad()
            logits = self.network(images.to(memory_format=self.layout))
            functional.cross_entropy(logits, torch.arange(len(images), device=images.device)).backward()
            self.optimizer.step()


def build(case: Case, device: str, preprocessing: Preprocessing | None = None) -> nn.Module:
    """Return the network of a case in its engine, with activations in the range of a trained network.

    Raises:
        NotImplementedError: the engine is not installed, or does not have this precision.
    """
    network = create_network(case.source, case.model)
    if case.engine in TRAINING:
        return TrainingStep(network.to(device), case.engine == TRAINING[1])
    if case.engine not in available_engines(device, case.precision):
        raise NotImplementedError(f"the {case.engine} engine has no {case.precision} here")
    with cpu_threads(1):  # equal statistics on every run: conversions are cached by the weights
        estimate_statistics(network, 224, 224)
    network = network.eval().to(device)
    if case.engine == "eager" and preprocessing is None:
        return network
    return accelerate(
        network if isinstance(network, ImageModule) else Peer(case.model, fuse(network)),
        engine=case.engine,
        precision=case.precision,
        example_input=images_of(case.shape, device),
        calibration=calibration_images() if case.precision == "int8" else None,
        preprocessing=preprocessing,
        check=False,
    )


def images_of(shape: Shape, device: str | torch.device) -> Tensor:
    """Return random images, always the same: images, height and width -> (N, 3, H, W)."""
    count, height, width = shape
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1)).to(device)


def cost(source: str, model: str) -> dict[str, Any]:
    """Return the multiply-accumulates for one image of 224 x 224, or 1024 x 2048 to segment, and reported errors."""
    segments = model == "fchardnet70" or (source, model) in SEGMENTATION_PEERS
    network = create_network(source, model).eval().to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, *((1024, 2048) if segments else (224, 224)), device="meta"))
    macs = int(counter.get_total_flops()) // 2
    if segments:
        return {"macs": macs}
    first, lowest = reported_top1_errors(source, model)
    return {"macs": macs, "reported_top1_error": first, "lowest_reported_top1_error": lowest}


def reported_top1_errors(source: str, model: str) -> tuple[float, float]:
    """Return reported top-1 errors on ImageNet in per cent: of the first published weights, and the lowest of all."""
    if source == "torchvision":
        metrics = [weights.meta["_metrics"] for weights in torchvision.models.get_model_weights(model)]
        errors = [round(100 - float(metric["ImageNet-1K"]["acc@1"]), 2) for metric in metrics]
    elif source == "timm":
        errors = [20.7]  # ese_vovnet39b in timm, docs/changes.md, 11 June 2020: "trained to 79.3 top-1"
    else:
        keys = [key for key in CATALOG if key[0] == model and key[1].startswith("IMAGENET1K")]
        errors = [CATALOG[key].top1_error for key in keys]
    return errors[0], min(errors)
