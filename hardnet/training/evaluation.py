"""Top-1 and top-5 errors, exact to the last image whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from ..utils.progress import ProgressBar
from .data import ImageSource
from .distributed import Ranks
from .errors import TrainingError
from .loading import Transform, evaluation_loader, iterate

TOP = 5


@dataclass(frozen=True)
class Evaluation:
    """Counts over a set of images, and the errors that follow from them."""

    images: int
    """How many were classified."""
    top1: int
    """How many of them had their class in the first place."""
    top5: int
    """How many had it among the first five."""
    loss: float
    """The mean cross-entropy, in nats."""
    bad: list[str] = field(default_factory=list)
    """What was wrong with the images that were passed over."""

    @property
    def top1_error(self) -> float:
        """Per cent."""
        return 100 * (1 - self.top1 / self.images)

    @property
    def top5_error(self) -> float:
        """Per cent."""
        return 100 * (1 - self.top5 / self.images)


def evaluate(
    predict: Callable[[Tensor], Tensor],
    source: ImageSource,
    transform: Transform,
    ranks: Ranks,
    *,
    batch_size: int = 256,
    workers: int = 0,
    skip_bad_images: bool = False,
    channels_last: bool = True,
    progress: bool = False,
) -> Evaluation:
    """Classify every image of a source once, all ranks together, and count.

    Args:
        predict: a model in evaluation mode, or another engine: (N, 3, H, W) -> (N, classes) logits.
        source: the images and their classes.
        transform: Pillow image -> tensor (3, H, W).
        ranks: the processes that share the work; every one of them must call this function.
        batch_size: images of one batch.
        workers: processes that read images.
        skip_bad_images: pass over images that cannot be read, and list them, instead of raising.
        channels_last: the memory format of the batches.
        progress: draw a bar on a terminal.

    Raises:
        ImageError: an image cannot be read.
        TrainingError: there is nothing to evaluate, or logits are not finite.
    """
    loader = evaluation_loader(
        source,
        transform,
        batch_size=batch_size,
        workers=workers,
        rank=ranks.rank,
        ranks=ranks.size,
        pin_memory=ranks.device.type == "cuda",
    )
    with ProgressBar(len(loader) * batch_size, "evaluating", unit="images", enabled=progress) as bar:
        counts, loss, bad = _count(predict, loader, ranks, skip_bad_images, channels_last, bar)
    images, top1, top5 = ranks.sum_counts(counts)
    bad = ranks.gather_texts(bad)
    if not images:
        raise TrainingError(f"there is no image to evaluate ({len(source)} listed, {len(bad)} unreadable)")
    return Evaluation(images, top1, top5, ranks.sum(loss) / images, bad)


@torch.no_grad()
def _count(
    predict: Callable[[Tensor], Tensor],
    loader: DataLoader[Any],
    ranks: Ranks,
    skip_bad_images: bool,
    channels_last: bool,
    bar: ProgressBar,
) -> tuple[tuple[int, int, int], float, list[str]]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = top1 = top5 = 0
    loss = 0.0
    bad: list[str] = []
    for batch in iterate(loader, skip_bad_images=skip_bad_images):
        bad += batch.bad
        bar.update(len(batch.labels) + len(batch.bad))
        if not len(batch.labels):
            continue
        labels = batch.labels.to(ranks.device, non_blocking=True)
        logits = predict(batch.images.to(ranks.device, non_blocking=True, memory_format=layout)).float()
        if not torch.isfinite(logits).all():
            raise TrainingError("the model gives logits that are not finite: its weights are damaged")
        found = logits.topk(min(TOP, logits.shape[1])).indices == labels[:, None]
        images += len(labels)
        top1 += int(found[:, 0].sum())
        top5 += int(found.sum())
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    return (images, top1, top5), loss, bad
