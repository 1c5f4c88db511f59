"""List what is measured: the rows of a benchmark, in groups that are compared with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OURS, BASELINE = "hardnet", "pytorchcv"
PEERS = (
    ("torchvision", "resnet50"),
    ("torchvision", "mobilenet_v2"),
    ("torchvision", "mobilenet_v3_large"),
    ("torchvision", "densenet121"),
    ("torchvision", "efficientnet_b0"),
    ("timm", "ese_vovnet39b"),
)
"""Networks of other families: source and name."""


@dataclass(frozen=True)
class Row:
    """The forward pass of a network on one batch of one size."""

    source: str
    """The package of the network."""
    model: str
    engine: str
    precision: str
    batch_size: int
    height: int
    width: int

    @property
    def network(self) -> tuple[str, str, str, str]:
        """What one process runs: source, model, engine and precision."""
        return self.source, self.model, self.engine, self.precision

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, height and width."""
        return self.batch_size, self.height, self.width

    @property
    def name(self) -> str:
        """The model, with its package if it is not ours: ``pytorchcv:hardnet68``."""
        return self.model if self.source == OURS else f"{self.source}:{self.model}"

    @property
    def size(self) -> str:
        """Height and width in pixels: ``224`` or ``480x640``."""
        return str(self.height) if self.height == self.width else f"{self.height}x{self.width}"

    def __str__(self) -> str:
        return f"{self.name} {self.engine} {self.precision}, batch {self.batch_size}, {self.size}"


def plan(
    models: Sequence[str],
    engines: Sequence[str],
    precisions: Sequence[str],
    shapes: Sequence[tuple[int, int, int]],
    peers: bool = True,
) -> list[list[Row]]:
    """Return one group of rows for each engine and precision: pytorchcv's models, our models, the other networks.

    "torch" is measured with our models only: for some of the others, its graphs of oneDNN do not exist or
    are not exact.

    Args:
        models: names of our models.
        engines: see :func:`hardnet.accelerate`.
        precisions: see :func:`hardnet.accelerate`; eager is measured in fp32 only.
        shapes: images per batch, height and width in pixels.
        peers: measure other networks too.
    """
    networks = [(OURS, model) for model in models] + [*(PEERS if peers else ())]
    groups = []
    for engine in engines:
        for precision in ("fp32",) if engine == "eager" else precisions:
            rows = [Row(BASELINE, model, "eager", "fp32", *shape) for shape in shapes for model in models if peers]
            rows += [
                Row(*network, engine, precision, *shape)
                for shape in shapes
                for network in networks
                if network[0] == OURS or engine != "torch"
            ]
            groups.append(rows)
    return groups
