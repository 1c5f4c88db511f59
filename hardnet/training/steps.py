"""One step of the optimiser: forward, loss, agreement among the ranks, backward, update."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import build as setup
from .checkpoint import Parts
from .distributed import Ranks
from .loading import Batch
from .options import TrainOptions
from .signals import StopRequest


@dataclass(frozen=True)
class StepResult:
    """What came of a step."""

    loss: float
    """The mean over this rank's batches."""
    taken: bool
    """False where the loss is not finite on some rank: nothing has been changed."""
    stop: bool
    """Whether some rank was asked to stop."""


class Stepper:
    """Takes steps with the parts of a run."""

    def __init__(self, parts: Parts, options: TrainOptions, ranks: Ranks, classes: int) -> None:
        self._parts = parts
        self._options = options
        self._ranks = ranks
        self._forward = setup.parallelise(parts.model, options, ranks)
        self._criterion = nn.CrossEntropyLoss(label_smoothing=options.label_smoothing)
        self._mix = setup.make_mix(options, classes)

    def take(self, batches: Sequence[Batch], stop: StopRequest) -> StepResult:
        """Do one step with the average gradient over the batches; on every rank at the same time."""
        self._parts.optimizer.zero_grad(set_to_none=True)
        loss_sum, stop_asked = 0.0, False
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with nullcontext() if last else self._without_sync():
                loss = self._loss(batch)
                loss_sum += float(loss.detach())
                if last:  # the ranks agree before the step that would spoil the weights or leave a rank waiting
                    broken, stop_asked = self._ranks.any([not math.isfinite(loss_sum), stop.requested])
                    if broken:
                        return StepResult(loss_sum / len(batches), False, stop_asked)
                scaled = self._parts.scaler.scale(loss / len(batches))
                scaled.backward()  # type: ignore[no-untyped-call,unused-ignore]
        self._update()
        return StepResult(loss_sum / len(batches), True, stop_asked)

    def _loss(self, batch: Batch) -> Tensor:
        device, options = self._ranks.device, self._options
        layout = torch.channels_last if options.channels_last else torch.contiguous_format
        images = batch.images.to(device, memory_format=layout, non_blocking=True)
        labels = batch.labels.to(device, non_blocking=True)
        if self._mix is not None:
            images, labels = self._mix(images, labels)
        with setup.autocast(options, device):
            loss: Tensor = self._criterion(self._forward(images), labels)
        return loss

    def _update(self) -> None:
        parts = self._parts
        if self._options.clip:
            parts.scaler.unscale_(parts.optimizer)
            trained = [parameter for parameter in parts.model.parameters() if parameter.requires_grad]
            nn.utils.clip_grad_norm_(trained, self._options.clip)
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
        with warnings.catch_warnings():
            if parts.scaler.is_enabled():  # it may pass over the first step; the learning rate follows the position
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            parts.scheduler.step()
        if parts.ema is not None:
            parts.ema.update_parameters(parts.model)

    def _without_sync(self) -> AbstractContextManager[None]:
        forward = self._forward
        return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()
