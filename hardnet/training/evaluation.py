"""Evaluate models: top-1 and top-5 errors, counted exactly on any number of ranks, next to the reported ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..images.batches import Decode, Transform
from ..utils.distributed import Ranks
from ..utils.errors import TrainingError
from ..utils.progress import progress_bar
from .data import ImageSource
from .loading import evaluation_batches, load_batches, worker_failures

TOP = 5
_BINS = 15


class Mistake(NamedTuple):
    """An image whose top prediction is wrong."""

    image: int
    """Number of the image in the source."""
    answer: int
    """Index of the predicted class."""
    probability: float
    """Probability of the predicted class, from 0 to 1."""


@dataclass(frozen=True)
class Evaluation:
    """Counts over a set of images, and the errors that follow from them."""

    images: int
    """Number of images that were classified."""
    top1: int
    """Number of images whose top prediction is correct."""
    top5: int
    """Number of images whose class is among the five most probable."""
    loss: float
    """Mean cross-entropy, in nats."""
    bad: list[str] = field(default_factory=list)
    """Error messages of the skipped images."""
    class_images: list[int] = field(default_factory=list)
    """Number of images of each class."""
    class_top1: list[int] = field(default_factory=list)
    """Number of images of each class whose top prediction is correct."""
    ece: float = math.nan
    """Expected calibration error of the top-1 probabilities in 15 equal bins (Guo et al. 2017), in per cent."""
    confusion: list[list[int]] = field(default_factory=list)
    """Counts, one row per true class, one column per predicted class; only with ``details``."""
    mistakes: list[Mistake] = field(default_factory=list)
    """The images whose top prediction is wrong, in their order; only with ``details``."""

    @property
    def top1_error(self) -> float:
        """Per cent of the images whose top prediction is wrong."""
        return 100 * (1 - self.top1 / self.images)

    @property
    def top5_error(self) -> float:
        """Per cent of the images whose class is not among the five most probable."""
        return 100 * (1 - self.top5 / self.images)

    @property
    def class_accuracies(self) -> list[float]:
        """Per cent of each class's images that are right, NaN for a class without images."""
        pairs = zip(self.class_top1, self.class_images, strict=True)
        return [100 * right / images if images else math.nan for right, images in pairs]


@worker_failures()
@torch.no_grad()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    source: ImageSource,
    transform: Transform,
    ranks: Ranks,
    *,
    batch_size: int = 256,
    workers: int = 0,
    skip_bad_images: bool = False,
    details: bool = False,
    decode: Decode = "exact",
) -> Evaluation:
    """Classify every image of a source once, all ranks together, and count; with a bar on a terminal.

    Args:
        predict: a model in evaluation mode, or another engine: (N, 3, H, W) -> (N, classes) logits.
        source: the images and their classes.
        transform: Pillow image -> tensor (3, H, W).
        ranks: the processes that share the work; every one of them must call this function.
        batch_size: images of one batch.
        workers: processes that read images.
        skip_bad_images: pass over images that cannot be read, and list them, instead of raising.
        details: count the confusion matrix and list the mistakes, too.
        decode: "fast" decodes files as :class:`hardnet.Classifier` does, with its ``Preprocessing`` as the transform.

    Raises:
        ImageError: an image cannot be read.
        TrainingError: there is nothing to evaluate, or logits are not finite or of other classes.
    """
    classes = len(source.classes)
    batches = evaluation_batches(source, batch_size, ranks.rank, ranks.size)
    pinned = ranks.device.type == "cuda"
    loaded = load_batches(
        *(source, transform, batches),
        workers=workers,
        skip_bad_images=skip_bad_images,
        pin_memory=pinned,
        decode=decode,
    )
    top5, loss = 0, 0.0
    bad: list[str] = []
    mistakes: list[Mistake] = []
    counts = torch.zeros(2, classes, dtype=torch.int64)
    confusion = torch.zeros(classes * classes if details else 0, dtype=torch.int64)
    confidence, right = torch.zeros(_BINS, dtype=torch.float64), torch.zeros(_BINS, dtype=torch.int64)
    bar = progress_bar(sum(map(len, batches)), "evaluating", unit="images", enabled=ranks.first, leave=False)
    with bar, closing(loaded):
        for batch in loaded:
            bad += batch.bad
            bar.update(len(batch.labels) + len(batch.bad))
            if not len(batch.labels):
                continue
            labels = batch.labels.to(ranks.device, non_blocking=True)
            images = batch.images.to(ranks.device, non_blocking=True, memory_format=torch.channels_last)
            logits = predict(images).float()
            if logits.shape[1] != classes:
                raise TrainingError(f"the model has {logits.shape[1]} classes, the data set has {classes}")
            if not torch.isfinite(logits).all():
                raise TrainingError("the model gives logits that are not finite: its weights are damaged")
            best = logits.topk(min(TOP, classes)).indices
            predicted, sure = best[:, 0].cpu(), logits.softmax(1).amax(1).cpu()
            bins = (sure * _BINS).long().clamp(max=_BINS - 1)
            confidence += torch.bincount(bins, sure.double(), _BINS)
            correct = predicted == batch.labels
            right += torch.bincount(bins[correct], minlength=_BINS)
            for count, truths in zip(counts, (batch.labels, batch.labels[correct]), strict=True):
                count += torch.bincount(truths, minlength=classes)
            if details:
                confusion += torch.bincount(batch.labels * classes + predicted, minlength=classes * classes)
                for position in (~correct).nonzero().flatten().tolist():
                    answer, probability = int(predicted[position]), float(sure[position])
                    mistakes.append(Mistake(batch.indices[position], answer, probability))
            top5 += int((best == labels[:, None]).sum())
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    everywhere = zip(*ranks.gather((counts, confusion, top5, loss, confidence - right, bad, mistakes)), strict=True)
    counts, confusion, top5, loss, gaps, bad, mistakes = (sum(parts[1:], parts[0]) for parts in everywhere)
    total, top1 = counts.sum(1).tolist()
    if not total:
        raise TrainingError(f"there is no image to evaluate ({len(source)} listed, {len(bad)} unreadable)")
    return Evaluation(
        images=total,
        top1=top1,
        top5=top5,
        loss=loss / total,
        bad=bad,
        class_images=counts[0].tolist(),
        class_top1=counts[1].tolist(),
        ece=100 * float(gaps.abs().sum()) / total,
        confusion=confusion.view(classes, classes).tolist() if details else [],
        mistakes=sorted(mistakes),
    )
