"""Processes started by torchrun: connect them and exchange small values (sums, flags, texts)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..utils.devices import usable_device


@dataclass
class Ranks:
    """The rank of this process and the number of ranks. A process started without torchrun is rank 0 of 1."""

    rank: int
    """Of this process, from 0."""
    size: int
    """How many processes there are."""
    device: torch.device
    """Where this process computes."""
    _group: Any = None
    """A gloo group for values on the CPU, separate from the gradients on the GPU."""

    @property
    def first(self) -> bool:
        """Whether this rank writes the files and the messages."""
        return self.rank == 0

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether it is set on any rank."""
        if self.size == 1:
            return list(flags)
        words = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(words, dist.ReduceOp.MAX, group=self._group)
        return [bool(word) for word in words.tolist()]

    def sum_counts(self, counts: Sequence[int]) -> list[int]:
        """Return the sums over the ranks, exactly."""
        if self.size == 1:
            return list(counts)
        words = torch.tensor(counts, dtype=torch.int64)
        dist.all_reduce(words, group=self._group)
        return [int(word) for word in words.tolist()]

    def sum(self, value: float) -> float:
        """Return the sum over the ranks, in double precision."""
        if self.size == 1:
            return value
        word = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(word, group=self._group)
        return float(word)

    def gather_texts(self, texts: list[str]) -> list[str]:
        """Return the texts of all ranks, in the order of the ranks."""
        if self.size == 1:
            return texts
        gathered: list[list[str]] = [[]] * self.size
        dist.all_gather_object(gathered, texts, group=self._group)
        return [text for some in gathered for text in some]

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors, in place, with those of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Return when every rank has arrived here."""
        if self.size > 1:
            dist.barrier(group=self._group)


@contextmanager
def connect(device: str = "auto") -> Iterator[Ranks]:
    """Join the ranks that torchrun started, by gloo on CPU and nccl on CUDA; leave them at the end.

    Where the process has joined them already, as within an outer ``connect``, that group is used and kept.

    Args:
        device: "cpu", "cuda", "cuda:1", ..., or "auto": CUDA where there is one. Under torchrun each rank takes the
            GPU of its local rank.

    Raises:
        ValueError: there is no such device.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")) if size > 1 else 0)
    if size == 1:
        yield Ranks(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    joined_before = dist.is_initialized()
    if not joined_before:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    ranks = Ranks(rank, size, chosen, dist.new_group(backend="gloo"))
    try:
        yield ranks
        ranks.wait()  # no rank closes its connections while another still uses them
    finally:
        # The group joins its threads when it is deleted. If a reference to `ranks` kept it until the interpreter ends,
        # such a thread would abort the process.
        ranks._group = None
        if not joined_before:
            dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name in ("auto", "cuda"):
        name = f"cuda:{local_rank}" if torch.cuda.is_available() else name.replace("auto", "cpu")
    device = usable_device(name)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {name!r}")
    return device
