"""List what is measured: the rows of a benchmark, in groups that are compared with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OURS, BASELINE, FLOOR = "hardnet", "pytorchcv", "floor"
PEERS = (("torchvision", "resnet50"), ("torchvision", "mobilenet_v2"), ("timm", "ese_vovnet39b"))
"""Networks of other families: source and name."""


@dataclass(frozen=True)
class Row:
    """The forward pass of a network on one batch of one size."""

    source: str
    """The package of the network, or "floor" for the matrix multiplication."""
    model: str
    engine: str
    precision: str
    batch_size: int
    height: int
    width: int

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
    batch_sizes: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    peers: bool = True,
) -> list[list[Row]]:
    """Return the rows, in one group for each batch size and resolution: matrix multiplication, peers, our models.

    Args:
        models: names of our models.
        engines: see :func:`hardnet.accelerate`.
        precisions: see :func:`hardnet.accelerate`; eager is measured in fp32 only.
        batch_sizes: images per batch.
        sizes: height and width in pixels.
        peers: measure other networks too, in eager mode.
    """
    groups = []
    for height, width in sizes:
        for batch in batch_sizes:
            at = (batch, height, width)
            rows = [Row(FLOOR, "matrix product", "torch", "fp32", *at)]
            rows += [Row(BASELINE, model, "eager", "fp32", *at) for model in models if peers]
            rows += [Row(source, model, "eager", "fp32", *at) for source, model in PEERS if peers]
            rows += [
                Row(OURS, model, engine, precision, *at)
                for model in models
                for engine in engines
                for precision in (("fp32",) if engine == "eager" else precisions)
            ]
            groups.append(rows)
    return groups
