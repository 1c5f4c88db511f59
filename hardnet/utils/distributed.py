"""Processes started by torchrun: connect them and exchange small values."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .devices import usable_device
from .errors import OutputError
from .text import reason

T = TypeVar("T")


@dataclass
class Ranks:
    """The rank of this process and the number of ranks. A process started without torchrun is rank 0 of 1."""

    rank: int
    """Number of this process, from 0."""
    size: int
    """Number of processes."""
    device: torch.device
    """The device on which this process computes."""
    _group: Any = None
    """A gloo group for values on the CPU, separate from the gradients on the GPU."""

    def __post_init__(self) -> None:
        self.first = self.rank == 0
        """True for the rank that writes the files and the messages."""

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order, when every rank has given its value."""
        if self.size == 1:
            return [value]
        gathered = [value] * self.size
        with _with_all_ranks():
            dist.all_gather_object(gathered, value, group=self._group)
        return gathered

    def scatter(self, values: list[T]) -> T:
        """Return to every rank its own of the values that rank 0 gives, one per rank."""
        if self.size == 1:
            return values[0]
        received: list[Any] = [None]
        with _with_all_ranks():
            dist.scatter_object_list(received, values if self.first else None, src=0, group=self._group)
        return cast(T, received[0])

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors, in place, with those of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


@contextmanager
def connect(device: str | torch.device = "auto") -> Iterator[Ranks]:
    """Join the ranks that torchrun started, by gloo on CPU and nccl on CUDA; leave them at the end.

    If the process has joined them already, as within an outer ``connect``, that group is used and kept.

    Args:
        device: "cpu", "cuda", "cuda:1", ..., or "auto": CUDA if there is one. Under torchrun each rank takes the
            GPU of its local rank. A ``torch.device`` is taken as it is.

    Raises:
        ValueError: there is no such device.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    compute = usable_device("cpu" if device == "auto" and not torch.cuda.is_available() else device)
    if isinstance(device, str) and compute.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {device!r}")
    if size == 1:
        yield Ranks(0, 1, compute)
        return
    if compute.type == "cuda":
        torch.cuda.set_device(compute)
    joined_before = dist.is_initialized()
    if not joined_before:
        dist.init_process_group("nccl" if compute.type == "cuda" else "gloo")
    ranks = Ranks(rank, size, compute, dist.new_group(backend="gloo"))
    try:
        yield ranks
        ranks.gather(None)  # no rank closes its connections while another still uses them
    finally:
        # The group joins its threads when it is deleted. If a reference to `ranks` kept it until the interpreter ends,
        # such a thread would abort the process.
        ranks._group = None
        time.sleep(0.1)  # torch 2.6 waits for these threads with the interpreter's lock, which their last tensors need
        if not joined_before:
            dist.destroy_process_group()


@contextmanager
def _with_all_ranks() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise OutputError(f"another rank has ended: {reason(error)}") from None
