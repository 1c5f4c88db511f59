"""Pictures in, one row of a model's output per picture out: decoded ahead of time, in batches, in order."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial

import torch
from torch import Tensor, nn

from ..utils.errors import ImageError
from ..utils.text import printable
from .inputs import WORKERS, Item, Transform, input_limits, prepare, prepare_ahead


def run_in_batches(
    items: Iterator[Item],
    model: nn.Module,
    transform: Transform,
    *,
    device: torch.device,
    batch_size: int,
    compute: Callable[[Tensor], object] | None = None,
    what: str = "logits of shape ({0}, classes)",
) -> Generator[tuple[Item, Tensor | ImageError], None, None]:
    """Iterate over the items in their order, each with its row of the output or the reason why there is none.

    Args:
        items: the pictures; taken ahead of the results, as far as two batches.
        model: on ``device``; its type and its channels are those of the input.
        transform: Pillow image -> float tensor (channels, H, W), called from several threads.
        device: where to compute.
        batch_size: the most pictures that the model sees at once; it sees only pictures of one size together.
        compute: (N, channels, H, W) -> (N, width); None is the model itself.
        what: what it must give, for the error's message; {0} stands for N.

    Yields:
        Rows (width,) in float32 or float64, on the CPU, finite.

    Raises:
        ValueError: while iterating, the transform or the model give something else than is wanted.
    """
    in_chans, min_size = input_limits(model)
    to_tensor = partial(prepare, transform=transform, in_chans=in_chans, min_size=min_size)
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if weight is None else weight.dtype

    def rows(images: Tensor) -> Tensor:
        with torch.inference_mode():
            output = (compute or model)(images.to(device, dtype))
            if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(images):
                given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"the model must give {what.format(len(images))}, it gave {given}")
            return output.to("cpu", torch.promote_types(output.dtype, torch.float32))

    batch: list[tuple[Item, Tensor | ImageError]] = []
    with closing(prepare_ahead(items, to_tensor, window=max(batch_size, WORKERS))) as prepared:
        for item, outcome in prepared:
            batch.append((item, outcome))
            if len(batch) == batch_size:
                yield from _run(batch, rows)
                batch = []
        yield from _run(batch, rows)


def _run(
    batch: Sequence[tuple[Item, Tensor | ImageError]], rows: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Item, Tensor | ImageError]]:
    outcomes = [outcome for _, outcome in batch]
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for position, (_, prepared) in enumerate(batch):
        if isinstance(prepared, Tensor):  # only like tensors can be stacked
            groups[prepared.shape, prepared.dtype, prepared.device].append(position)
    for positions in groups.values():
        tensors = [prepared for position in positions if isinstance(prepared := batch[position][1], Tensor)]
        output = rows(torch.stack(tensors))
        for position, row, finite in zip(positions, output, output.isfinite().all(1).tolist(), strict=True):
            name = printable(batch[position][0].source)
            outcomes[position] = (
                row if finite else ImageError(f"{name}: the model's output is infinite or not a number")
            )
    for (item, _), outcome in zip(batch, outcomes, strict=True):
        yield item, outcome


def prepared(items: Iterator[Item], model: nn.Module, transform: Transform) -> Iterator[Tensor]:
    """Yield each picture as a batch of one, (1, channels, H, W), ready for the model.

    Raises:
        ImageError: while iterating, a picture is unusable.
    """
    in_chans, min_size = input_limits(model)
    for item in items:
        outcome = prepare(item, transform=transform, in_chans=in_chans, min_size=min_size)
        if isinstance(outcome, ImageError):
            raise outcome
        yield outcome[None]


def report_unusable(item: Item, error: ImageError, logger: logging.Logger) -> None:
    """Raise the error where nothing but this picture was asked for, else log it as a warning.

    Raises:
        ImageError: the item was handed over alone.
    """
    if item.alone:
        raise error
    logger.warning("%s", error)
