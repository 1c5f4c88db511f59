"""Gradient checkpointing: recompute the activations of a block in the backward pass instead of storing them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_checkpointed(module: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``run(x)``; its backward pass runs it again, without counting the batch in the module's statistics.

    Not compiled by ``torch.compile``: with the backend "eager" the statistics would be counted twice.
    """
    # Not a decorator: it would import torch's compiler with this module.
    run_uncompiled = torch.compiler.disable(checkpoint)  # type: ignore[no-untyped-call]
    output: Tensor = run_uncompiled(
        run, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _keep_statistics(module))
    )
    return output


@contextmanager
def _keep_statistics(module: nn.Module) -> Iterator[None]:
    """Normalise by the batch without counting it: it has been counted in the forward pass already."""
    norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d) and child.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm, (_, count) in zip(norms, before, strict=True):
            # Not track_running_stats = False: the two passes must keep the same tensors for the backward pass.
            norm.momentum = 0.0
            norm.num_batches_tracked = None if count is None else count.clone()
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
