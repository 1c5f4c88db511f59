"""Batches for training and evaluation: augmentation seeded per image, resumable order, unreadable images."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..images.preprocess import limit_aspect_ratio
from ..utils.devices import usable_processors
from ..utils.errors import DataError, ImageError
from .data import ImageSource
from .options import TrainOptions
from .seeds import permutation, seeded

if TYPE_CHECKING:
    from PIL import Image

Transform = Callable[["Image.Image"], Tensor]


@dataclass(frozen=True)
class Batch:
    """Images (N, 3, H, W) of float32, their classes (N,), and what was wrong with images that are not among them."""

    images: Tensor
    labels: Tensor
    bad: list[str]


@dataclass(frozen=True)
class _Sample:
    image: Tensor | None
    label: int
    bad: list[str]


def training_transform(options: TrainOptions, size: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """Return the augmentation: Pillow image -> float32 tensor (3, size, size)."""
    from torchvision import transforms as T  # type: ignore[import-untyped]  # noqa: N812 - the field's name for it

    steps: list[Any] = []
    if options.crop == "resized":
        steps.append(T.RandomResizedCrop(size, scale=(options.min_scale, 1.0)))
    else:
        steps += [limit_aspect_ratio, T.Resize(size), T.RandomCrop(size, padding=round(size * options.pad) or None)]
    if options.flip:
        steps.append(T.RandomHorizontalFlip(options.flip))
    if options.auto_augment == "rand":
        steps.append(T.RandAugment())
    elif options.auto_augment == "trivial":
        steps.append(T.TrivialAugmentWide())
    steps += [T.ToTensor(), T.Normalize(list(mean), list(std), inplace=True)]
    if options.erase:
        steps.append(T.RandomErasing(options.erase, scale=(0.02, options.erase_max)))
    transform: Transform = T.Compose(steps)
    return transform


@dataclass(frozen=True)
class _Images(Dataset[_Sample]):
    """A source, transformed. In training (``seed`` given) the random numbers depend on seed, epoch and index alone."""

    source: ImageSource
    transform: Transform
    seed: tuple[int, int] | None
    substitute: bool
    """Whether the next readable image takes the place of an unreadable one."""

    def __getitem__(self, index: int) -> _Sample:
        bad: list[str] = []
        count = len(self.source)
        for candidate in range(index, index + (count if self.substitute else 1)):
            try:
                image, label = self.source.load(candidate % count)
            except ImageError as error:  # raised again by `load_batches`: a worker's would arrive as a traceback
                bad.append(str(error))
                continue
            if self.seed is None:
                return _Sample(self.transform(image), label, bad)
            with seeded(*self.seed, "image", index):
                return _Sample(self.transform(image), label, bad)
        return _Sample(None, -1, bad)


def _collate(samples: list[_Sample]) -> Batch:
    images = [sample.image for sample in samples if sample.image is not None]
    labels = [sample.label for sample in samples if sample.image is not None]
    return Batch(
        torch.stack(images) if images else torch.empty(0),
        torch.tensor(labels, dtype=torch.int64),
        [message for sample in samples for message in sample.bad],
    )


def training_batches(
    count: int, options: TrainOptions, epoch: int, rank: int = 0, ranks: int = 1, first_step: int = 0
) -> list[list[int]]:
    """Return the indices of each batch of a rank in an epoch, from step ``first_step`` on.

    A step of the optimiser takes ``accumulate`` of them. All ranks together cut the same random order into global
    batches, so that their number does not change which images a step sees. The incomplete last one is left out.
    """
    order = permutation(count, options.seed, "order", epoch)
    size = options.batch_size
    per_step = size * ranks * options.accumulate
    steps = order[: count // per_step * per_step].view(-1, options.accumulate, ranks, size)
    return [batch.tolist() for step in steps[first_step:, :, rank] for batch in step]


def evaluation_batches(source: ImageSource, batch_size: int, rank: int = 0, ranks: int = 1) -> list[list[int]]:
    """Return the indices of each batch of a rank; all ranks together go once over every image.

    Whole batches are dealt out to the ranks, so that a batch holds the same images whatever their number, and a
    result does not depend on it even in the last bit.
    """
    starts = range(rank * batch_size, len(source), ranks * batch_size)
    return [list(range(start, min(start + batch_size, len(source)))) for start in starts]


def load_batches(
    source: ImageSource,
    transform: Transform,
    batches: Sequence[list[int]],
    *,
    seed: tuple[int, int] | None = None,
    workers: int = 0,
    skip_bad_images: bool = False,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """Yield images by their indices. Close the generator (``contextlib.closing``) to end its worker processes.

    Args:
        source: the images.
        transform: Pillow image -> tensor (3, H, W).
        batches: the indices of each batch.
        seed: in training, of the transform's random numbers: the run's seed and the epoch.
        workers: processes that read images; 0 reads them in this one.
        skip_bad_images: in training, the next readable image takes the place of an unreadable one; in evaluation it is
            left out.
        pin_memory: for faster copies to a GPU.

    Raises:
        ImageError: an image cannot be read, and ``skip_bad_images`` is false.
        DataError: in training, not one of the images can be read.
    """
    images = _Images(source, transform, seed, substitute=skip_bad_images and seed is not None)
    loader = DataLoader(
        images,
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=min(workers, len(batches), usable_processors()),
        pin_memory=pin_memory,
        worker_init_fn=_ignore_signals,
    )
    loaded: Any = iter(loader)
    try:
        for batch in loaded:
            if batch.bad and not skip_bad_images:
                raise ImageError(f"{batch.bad[0]} (--skip-bad-images leaves such files out)")
            if seed is not None and not len(batch.labels):  # nothing could take their place
                raise DataError(f"none of the training images can be read: {batch.bad[0]}")
            yield batch
    finally:
        # A traceback keeps the iterator alive, and at exit Python would send its workers SIGTERM, which they ignore,
        # and wait for them without end.
        if hasattr(loaded, "_shutdown_workers"):
            loaded._shutdown_workers()
            for worker in loaded._workers:
                worker.kill()


def _ignore_signals(worker: int) -> None:
    """Ignore signals that go to the whole process group in a data worker: the training process ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
