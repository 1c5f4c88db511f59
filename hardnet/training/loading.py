"""Batches for training and evaluation: augmentation seeded per image, resumable order, unreadable images."""

import logging
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..images.batches import Decode, Item, Transform, prepare
from ..images.preprocess import limit_aspect_ratio
from ..utils.devices import usable_processors
from ..utils.errors import DataError, ImageError, TrainingError
from ..utils.log import warn_once
from ..utils.text import reason
from .data import ImageSource
from .options import TrainOptions
from .seeds import permutation, seeded

logger = logging.getLogger(__name__)


class LabelledBatch(NamedTuple):
    """Images (N, 3, H, W) of float32 and their classes (N,)."""

    images: Tensor
    labels: Tensor
    indices: list[int]  # their numbers in the source
    bad: list[str]  # error messages of the images that are missing


def training_transform(options: TrainOptions, size: int) -> Transform:
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
    steps += [T.ToTensor(), T.Normalize(options.mean, options.std, inplace=True)]
    if options.erase:
        steps.append(T.RandomErasing(options.erase, scale=(0.02, options.erase_max)))
    transform: Transform = T.Compose(steps)
    return transform


@dataclass(frozen=True)
class _Batches(Dataset[Any]):
    """Pixels, labels, indices and errors of batches; random numbers depend on seed, epoch and index alone."""

    source: ImageSource
    transform: Transform
    seed: tuple[int, int] | None
    substitute: bool  # the next readable image takes the place of an unreadable one
    decode: Decode

    def __getitem__(self, batch: list[int]) -> tuple[Any, list[int], list[int], list[str]]:
        count = len(self.source)
        images, indices, bad = [], [], []
        for index in batch:
            for candidate in range(index, index + (count if self.substitute else 1)):
                try:
                    images.append(self._image(candidate % count, index))
                except ImageError as error:  # raised by `load_batches`: a worker's would arrive as a traceback
                    bad.append(str(error))
                else:
                    indices.append(candidate % count)
                    break
        pixels: Any = torch.stack(images) if images else torch.empty(0)
        if get_worker_info() is not None:
            # Here, since an error in the thread that sends a batch would be printed only, and the batch be waited for.
            try:
                pixels.share_memory_()
            except RuntimeError:
                pixels = pixels.numpy()
        return pixels, [self.source.labels[index] for index in indices], indices, bad

    def _image(self, index: int, position: int) -> Tensor:
        """Return an image, augmented as the one at ``position``, whose place it may take."""
        if self.decode == "fast":
            return prepare(Item(self.source.names[index], self.source.files[index]), self.transform, decode="fast")
        image, _ = self.source.load(index)
        with nullcontext() if self.seed is None else seeded(*self.seed, "image", position):
            return self.transform(image)


@contextmanager
def worker_failures() -> Iterator[None]:
    """Turn torch's error about a killed data worker, which may arise anywhere in the main thread, into one line."""
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
    """Return the indices of each batch of a rank in an epoch, ``accumulate`` per step, from step ``first_step`` on.

    All ranks cut the same random order into global batches, so that their number does not change what a step sees.
    """
    order = permutation(count, options.seed, "order", epoch)
    size = options.batch_size
    per_step = size * ranks * options.accumulate
    steps = order[: count // per_step * per_step].view(-1, options.accumulate, ranks, size)
    return [batch.tolist() for step in steps[first_step:, :, rank] for batch in step]


def evaluation_batches(source: ImageSource, batch_size: int, rank: int = 0, ranks: int = 1) -> list[list[int]]:
    """Return the indices of each batch of a rank: a batch holds the same images whatever the number of ranks."""
    images = range(len(source))
    return [list(images[start : start + batch_size]) for start in images[rank * batch_size :: ranks * batch_size]]


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

    In training, ``seed`` is the run's seed and the epoch. With ``skip_bad_images``, the next readable image takes the
    place of an unreadable one in training; in evaluation it is left out.
    """
    loader = DataLoader(
        _Batches(source, transform, seed, skip_bad_images and seed is not None, decode),
        batch_size=None,
        sampler=batches,
        collate_fn=list,
        num_workers=min(workers, len(batches), usable_processors()),
        pin_memory=pin_memory,
        worker_init_fn=_ignore_signals,
    )
    loaded: Any = iter(loader)
    try:
        for pixels, labels, indices, bad in loaded:
            if bad and not skip_bad_images:
                raise ImageError(f"{bad[0]} (--skip-bad-images leaves such files out)")
            if seed is not None and not labels:  # nothing could take their place
                raise DataError(f"none of the training images can be read: {bad[0]}")
            if not isinstance(pixels, Tensor):
                warn_once(
                    logger,
                    "shared memory",
                    "too little shared memory for batches of %d MB: data workers send copies, which takes longer. A "
                    "smaller --batch-size helps, in a container docker run --shm-size 2g",
                    pixels.nbytes >> 20,
                )
                pixels = torch.from_numpy(pixels)
            yield LabelledBatch(pixels, torch.tensor(labels, dtype=torch.int64), indices, bad)
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
