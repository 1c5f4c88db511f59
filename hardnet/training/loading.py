"""Batches for training and evaluation: augmentation seeded per image, resumable order, unreadable images."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..utils.errors import ImageError
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
        steps += [T.Resize(size), T.RandomCrop(size, padding=round(size * options.pad) or None)]
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


class _Images(Dataset[_Sample]):
    """A source, transformed. In training (``seed`` given) the random numbers depend on seed, epoch and index alone."""

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        *,
        substitute: bool = False,
        seed: tuple[int, int] | None = None,
    ) -> None:
        self._source = source
        self._transform = transform
        self._substitute = substitute
        self._seed = seed

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> _Sample:
        bad: list[str] = []
        count = len(self._source)
        for candidate in range(index, index + (count if self._substitute else 1)):
            try:
                image, label = self._source.load(candidate % count)
            except ImageError as error:  # raised again by `iterate`: a worker's exception would arrive as a traceback
                bad.append(str(error))
                continue
            if self._seed is None:
                return _Sample(self._transform(image), label, bad)
            with seeded(*self._seed, "image", index):
                return _Sample(self._transform(image), label, bad)
        return _Sample(None, -1, bad)


def _collate(samples: list[_Sample]) -> Batch:
    images = [sample.image for sample in samples if sample.image is not None]
    labels = [sample.label for sample in samples if sample.image is not None]
    return Batch(
        torch.stack(images) if images else torch.empty(0),
        torch.tensor(labels, dtype=torch.int64),
        [message for sample in samples for message in sample.bad],
    )


class _Batches:
    """The batches of one rank, as lists of indices: a batch sampler for DataLoader."""

    def __init__(self, batches: Sequence[list[int]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def training_batches(
    count: int, options: TrainOptions, epoch: int, *, rank: int = 0, ranks: int = 1, first_step: int = 0
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


def training_loader(
    source: ImageSource,
    transform: Transform,
    options: TrainOptions,
    epoch: int,
    batches: Sequence[list[int]],
    pin_memory: bool = False,
) -> DataLoader[_Sample]:
    """Return a loader of :class:`Batch` for the given batches of an epoch; go over it with :func:`iterate`.

    With ``skip_bad_images`` the next readable image of the source takes the place of an unreadable one.
    """
    images = _Images(source, transform, substitute=options.skip_bad_images, seed=(options.seed, epoch))
    return _loader(images, batches, options.workers, pin_memory)


def evaluation_loader(
    source: ImageSource,
    transform: Transform,
    *,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
    pin_memory: bool = False,
) -> DataLoader[_Sample]:
    """Return a loader of :class:`Batch` that goes once over every image, all ranks together; see :func:`iterate`.

    Whole batches are dealt out to the ranks, so that a batch holds the same images whatever their number, and a
    result does not depend on it even in the last bit.
    """
    starts = range(rank * batch_size, len(source), ranks * batch_size)
    batches = [list(range(start, min(start + batch_size, len(source)))) for start in starts]
    return _loader(_Images(source, transform), batches, workers, pin_memory)


def _loader(images: _Images, batches: Sequence[list[int]], workers: int, pin_memory: bool) -> DataLoader[_Sample]:
    return DataLoader(
        images,
        batch_sampler=_Batches(batches),
        collate_fn=_collate,
        num_workers=min(workers, len(batches)),
        pin_memory=pin_memory,
        worker_init_fn=_ignore_signals,
    )


def iterate(loader: DataLoader[_Sample], *, skip_bad_images: bool) -> Generator[Batch, None, None]:
    """Yield the batches of a loader. Close the generator (``contextlib.closing``) to end its worker processes.

    Raises:
        ImageError: an image cannot be read, and ``skip_bad_images`` is false.
    """
    with _deferred_interrupt():
        batches: Any = iter(loader)
    try:
        for batch in batches:
            if batch.bad and not skip_bad_images:
                raise ImageError(batch.bad[0])
            yield batch
    finally:
        # A traceback keeps the iterator alive, and at exit Python would send its workers SIGTERM, which they ignore,
        # and wait for them without end.
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()
            for worker in batches._workers:
                worker.kill()


def _ignore_signals(worker: int) -> None:
    """Ignore signals that go to the whole process group in a data worker: the training process ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _deferred_interrupt() -> Iterator[None]:
    """Handle a Ctrl-C after the block: torch prints a traceback when the start of its workers is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous, received = signal.getsignal(signal.SIGINT), []
    signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if received and callable(previous):
            previous(*received[0])
