"""Batches for training and evaluation: augmentation seeded per image, resumable order, unreadable images."""

from __future__ import annotations

import dataclasses
import functools
import logging
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..images.batches import Decode, Item, Transform, prepare
from ..images.preprocess import limit_aspect_ratio
from ..utils.devices import usable_processors
from ..utils.errors import DataError, ImageError, TrainingError
from ..utils.text import reason
from .data import ImageSource
from .options import TrainOptions
from .seeds import permutation, seeded

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledBatch:
    """Images (N, 3, H, W) of float32 and their classes (N,)."""

    images: Tensor
    labels: Tensor
    indices: list[int]
    """Their numbers in the source."""
    bad: list[str]
    """Error messages of the images that are missing."""


@dataclass(frozen=True)
class _Samples:
    """A batch on its way from a data worker: its pixels in shared memory, or as an array if that is too small."""

    pixels: Any
    labels: list[int]
    indices: list[int]
    bad: list[str]

    def pin_memory(self) -> _Samples:
        """Return the batch in page-locked memory; called by DataLoader."""
        return dataclasses.replace(self, pixels=self.pixels.pin_memory()) if isinstance(self.pixels, Tensor) else self


@dataclass(frozen=True)
class _Sample:
    image: Tensor | None
    label: int
    index: int
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
    decode: Decode = "exact"

    def __getitem__(self, index: int) -> _Sample:
        bad: list[str] = []
        count = len(self.source)
        for candidate in range(index, index + (count if self.substitute else 1)):
            try:
                path = None if self.decode == "exact" else self.source.path(candidate % count)
                if path is not None:
                    prepared = prepare(Item(str(path), path), self.transform, 3, 1, decode=self.decode)
                    return _Sample(prepared, self.source.labels[candidate % count], candidate, bad)
                image, label = self.source.load(candidate % count)
            except ImageError as error:  # raised again by `load_batches`: a worker's would arrive as a traceback
                bad.append(str(error))
                continue
            if self.seed is None:
                return _Sample(self.transform(image), label, candidate, bad)
            with seeded(*self.seed, "image", index):
                return _Sample(self.transform(image), label, candidate, bad)
        return _Sample(None, -1, -1, bad)


def _collate(samples: list[_Sample]) -> _Samples:
    read = [sample for sample in samples if sample.image is not None]
    images = [sample.image for sample in samples if sample.image is not None]
    pixels: Any = torch.stack(images) if images else torch.empty(0)
    if get_worker_info() is not None:
        # Here, since an error in the thread that sends a batch would be printed only, and the batch be waited for.
        try:
            pixels.share_memory_()
        except RuntimeError:
            pixels = pixels.numpy()
    labels, indices = [sample.label for sample in read], [sample.index for sample in read]
    return _Samples(pixels, labels, indices, [message for sample in samples for message in sample.bad])


@functools.cache
def _warn_of_copies(megabytes: int) -> None:
    logger.warning(
        "too little shared memory for batches of %d MB: data workers send copies, which takes longer. A smaller "
        "--batch-size helps, in a container docker run --shm-size 2g",
        megabytes,
    )


@contextmanager
def worker_failures() -> Iterator[None]:
    """Turn torch's error about a killed data worker, which may arise anywhere in the main thread, into one line.

    Raises:
        TrainingError: a data worker has been killed.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise TrainingError(
            "a data worker was killed, as systems do when memory runs out: use fewer --workers or a smaller "
            f"--batch-size; a training run goes on with --resume auto ({reason(error)})"
        ) from None


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
    decode: Decode = "exact",
) -> Generator[LabelledBatch, None, None]:
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
        decode: "fast" requires a :class:`hardnet.images.preprocess.Preprocessing`.

    Raises:
        ImageError: an image cannot be read, and ``skip_bad_images`` is false.
        DataError: in training, not one of the images can be read.
    """
    images = _Images(source, transform, seed, substitute=skip_bad_images and seed is not None, decode=decode)
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
        for samples in loaded:
            pixels = samples.pixels
            if not isinstance(pixels, Tensor):
                _warn_of_copies(pixels.nbytes >> 20)
                pixels = torch.from_numpy(pixels)
            labels = torch.tensor(samples.labels, dtype=torch.int64)
            batch = LabelledBatch(pixels, labels, samples.indices, samples.bad)
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
