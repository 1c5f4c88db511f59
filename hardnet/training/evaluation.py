"""Evaluate models: top-1 and top-5 errors, counted exactly on any number of ranks."""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
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
    truth: int
    """Index of its class."""
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
    ece: float
    """Expected calibration error of the top-1 probabilities in 15 equal bins (Guo et al. 2017), in per cent."""
    class_images: list[int]
    """Number of images of each class."""
    class_top1: list[int]
    """Number of images of each class whose top prediction is correct."""
    mistakes: list[Mistake]
    """The images whose top prediction is wrong, in their order."""
    bad: list[str]
    """Error messages of the skipped images."""

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

    @property
    def confusion(self) -> list[list[int]]:
        """Counts, one row per true class, one column per predicted class."""
        counts: list[list[int]] = torch.diag(torch.tensor(self.class_top1)).tolist()
        for mistake in self.mistakes:
            counts[mistake.truth][mistake.answer] += 1
        return counts


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
        decode: "fast" decodes files as :class:`hardnet.Classifier` does, with its ``Preprocessing`` as the transform.

    Raises:
        ImageError: an image cannot be read.
        TrainingError: there is nothing to evaluate, or logits are not finite or of other classes.
    """
    classes = len(source.classes)
    batches = evaluation_batches(source, batch_size, ranks.rank, ranks.size)
    loaded = load_batches(
        source,
        transform,
        batches,
        workers=workers,
        skip_bad_images=skip_bad_images,
        pin_memory=ranks.device.type == "cuda",
        decode=decode,
    )
    bad: list[str] = []
    tables = [torch.empty(6, 0, dtype=torch.float64)]  # index, class, prediction, its probability, top-5 hit, loss
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
            hits = (best == labels[:, None]).any(1)
            loss = functional.cross_entropy(logits, labels, reduction="none")
            columns = (torch.tensor(batch.indices), labels, best[:, 0], logits.softmax(1).amax(1), hits, loss)
            tables.append(torch.stack([column.cpu().double() for column in columns]))
    everywhere = ranks.gather((torch.cat(tables, 1), bad))
    table = torch.cat([table for table, _ in everywhere], 1)
    bad = list(chain.from_iterable(messages for _, messages in everywhere))
    total = table.shape[1]
    if not total:
        raise TrainingError(f"there is no image to evaluate ({len(source)} listed, {len(bad)} unreadable)")
    table = table[:, table[0].argsort()]  # hence sums do not depend on the number of ranks
    truth, answer, probability = table[1].long(), table[2].long(), table[3]
    correct = truth == answer
    bins = (probability * _BINS).long().clamp(max=_BINS - 1)
    gaps = torch.bincount(bins, probability - correct.double(), _BINS)
    return Evaluation(
        images=total,
        top1=int(correct.sum()),
        top5=int(table[4].sum()),
        loss=float(table[5].mean()),
        ece=100 * float(gaps.abs().sum()) / total,
        class_images=torch.bincount(truth, minlength=classes).tolist(),
        class_top1=torch.bincount(truth[correct], minlength=classes).tolist(),
        mistakes=[Mistake(int(row[0]), int(row[1]), int(row[2]), row[3]) for row in table[:4, ~correct].T.tolist()],
        bad=bad,
    )
