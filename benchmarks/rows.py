"""What is measured: the rows of a benchmark, in the groups that are compared with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hardnet.models.config import CONFIGS

OURS, BASELINE, FLOOR = "hardnet", "pytorchcv", "floor"
PEERS = (("torchvision", "resnet50"), ("torchvision", "mobilenet_v2"), ("timm", "ese_vovnet39b"))
"""Networks of other families, to compare with: source and name."""
PEER_ENGINES = ("eager", "compile")
"""What runs a peer: the module as it is, or ``torch.compile`` with frozen weights."""


@dataclass(frozen=True)
class Row:
    """One thing to be timed: the forward pass of a network on one batch of one size."""

    source: str
    """The package that the network is from, or "floor" for the matrix product."""
    model: str
    engine: str
    precision: str
    batch_size: int
    height: int
    """In pixels."""
    width: int
    """In pixels."""

    @property
    def name(self) -> str:
        """The model, with its package where it is not ours: ``pytorchcv:hardnet68``."""
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
    peer_engines: Sequence[str] = ("eager",),
) -> list[list[Row]]:
    """Return the rows to measure, in one group for each batch size and resolution.

    Rows are compared within their group only, and only a group's processes are in memory together. Its first row is
    the matrix product, then come the peers, then the models.

    Args:
        models: names of our models.
        engines: see :func:`hardnet.accelerate`, and "eager" for the model as it is.
        precisions: see :func:`hardnet.accelerate`; the plain model is measured in fp32 only.
        batch_sizes: images per batch.
        sizes: height and width in pixels.
        peer_engines: "eager", "compile" or both; empty leaves the peers out.

    Raises:
        ValueError: there is no such model.
    """
    for model in models:
        if model not in CONFIGS:
            raise ValueError(f"there is no model {model!r}; known: {', '.join(CONFIGS)}")
    return [
        _group(models, engines, precisions, peer_engines, batch, height, width)
        for height, width in sizes
        for batch in batch_sizes
    ]


def _group(
    models: Sequence[str],
    engines: Sequence[str],
    precisions: Sequence[str],
    peer_engines: Sequence[str],
    batch: int,
    height: int,
    width: int,
) -> list[Row]:
    at = (batch, height, width)
    rows = [Row(FLOOR, "matrix product", "torch", "fp32", *at)]
    if peer_engines:
        rows += [Row(BASELINE, model, "eager", "fp32", *at) for model in models]
        rows += [Row(source, model, engine, "fp32", *at) for source, model in PEERS for engine in peer_engines]
    for model in models:
        for engine in engines:
            wanted = ("fp32",) if engine == "eager" else precisions
            rows += [Row(OURS, model, engine, precision, *at) for precision in wanted]
    return rows
