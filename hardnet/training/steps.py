"""One step of the optimiser: forward, loss, backward, update."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from ..utils.distributed import Ranks
from .checkpoint import RunDescription, TrainingState
from .components import build_teachers, make_mix
from .loading import LabelledBatch
from .options import TrainOptions
from .signals import StopRequest

_AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class StepResult(NamedTuple):
    """The outcome of a step, over all ranks."""

    loss: float
    """Mean loss. If it is not finite, nothing has been changed."""
    bad: list[str]
    """Error messages of the images that could not be read."""
    stop: bool
    """Whether some rank was asked to stop."""


class StepRunner:
    """Takes the steps of a run, which change its state."""

    def __init__(
        self,
        state: TrainingState,
        options: TrainOptions,
        ranks: Ranks,
        description: RunDescription,
        labels: Sequence[int],
    ) -> None:
        self._state = state
        self._options = options
        self._ranks = ranks
        self._forward: nn.Module = state.model
        self._without_sync: Callable[[], AbstractContextManager[None]] = nullcontext
        if ranks.size > 1:  # averages the gradients over the ranks
            devices = [ranks.device.index] if ranks.device.type == "cuda" else None
            parallel = DistributedDataParallel(state.model, device_ids=devices, gradient_as_bucket_view=True)
            self._forward, self._without_sync = parallel, parallel.no_sync
        weights = None
        if options.class_weights == "balanced":
            counts = torch.bincount(torch.tensor(labels), minlength=len(description.classes)).clamp(min=1)
            weights = (len(labels) / len(description.classes) / counts).to(ranks.device)
        self._criterion = nn.CrossEntropyLoss(weights, label_smoothing=options.label_smoothing)
        self._mix = make_mix(options, len(description.classes))
        self._teachers = build_teachers(options, description, ranks)

    def take(self, batches: Sequence[LabelledBatch], stop: StopRequest) -> StepResult:
        """Do one step with the average gradient over the batches; on every rank at the same time."""
        self._state.optimizer.zero_grad(set_to_none=True)
        loss_sum, bad = 0.0, [message for batch in batches for message in batch.bad]
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with nullcontext() if last else self._without_sync():
                loss = self._loss(batch)
                loss_sum += float(loss.detach())
                if last:  # the ranks agree before the step that would spoil the weights or leave a rank waiting
                    losses, messages, stops = zip(*self._ranks.gather((loss_sum, bad, stop.requested)), strict=True)
                    bad = list(chain.from_iterable(messages))
                    result = StepResult(sum(losses) / len(losses) / len(batches), bad, any(stops))
                    if not math.isfinite(result.loss):
                        return result
                scaled = self._state.scaler.scale(loss / len(batches))
                scaled.backward()  # type: ignore[no-untyped-call,unused-ignore]
        self._update()
        return result

    def _loss(self, batch: LabelledBatch) -> Tensor:
        device, options = self._ranks.device, self._options
        images = batch.images.to(device, memory_format=torch.channels_last, non_blocking=True)
        labels = batch.labels.to(device, non_blocking=True)
        if self._mix is not None:
            images, labels = self._mix(images, labels)
        with torch.autocast(device.type, _AMP_TYPES.get(options.amp), enabled=options.amp in _AMP_TYPES):
            logits = self._forward(images)
            loss: Tensor = self._criterion(logits, labels)
            if self._teachers:
                loss = torch.lerp(loss, self._distillation(logits, images), options.teacher_share)
        return loss

    def _distillation(self, logits: Tensor, images: Tensor) -> Tensor:
        """Return the cross-entropy with the teachers' mean probabilities (Hinton et al. 2015), (N, classes) -> ()."""
        temperature = self._options.temperature
        with torch.no_grad():
            outputs = [(teacher(images).float() / temperature).softmax(1) for teacher in self._teachers]
            probabilities = torch.stack(outputs).mean(0)
        return functional.cross_entropy(logits.float() / temperature, probabilities) * temperature**2

    def _update(self) -> None:
        state = self._state
        if self._options.clip:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), self._options.clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        with warnings.catch_warnings():  # the scaler may pass over the first step; the rate follows the position
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            state.scheduler.step()
        if state.model_ema is not None:
            state.model_ema.update_parameters(state.model)
