"""The training loop: from options to a trained model in the run's folder."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..images.preprocess import Preprocessing
from ..utils.distributed import Ranks, connect
from ..utils.errors import DataError, TrainingError
from ..utils.progress import progress_bar
from ..utils.text import reason
from ..weights.load import Loaded
from . import build
from .checkpoint import (
    BEST,
    CHECKPOINT,
    FINAL,
    OPTIONS,
    VALIDATION,
    Facts,
    Parts,
    Position,
    final_content,
    find_checkpoint,
    restore,
    save_atomically,
    save_checkpoint,
)
from .data import ImageSource, Splits, open_data
from .evaluation import TOP, evaluate
from .loading import LabelledBatch, load_batches, training_batches, training_transform, worker_failures
from .metrics import Recorder, draw_curves
from .options import TrainOptions
from .package import saved_labels, write_pretrained
from .seeds import derive_seed
from .shrinking import keep_shrunk
from .signals import StopRequest
from .steps import Stepper

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: Path
    """Of the run: checkpoints, metrics.jsonl, curves."""
    epochs: int
    """How many are complete."""
    finished: bool
    """False where a signal stopped the run; ``--resume auto`` goes on."""
    metrics: dict[str, Any] | None
    """The numbers of the last complete epoch, None where this process completed none."""


def train(
    options: TrainOptions,
    report: Report | None = None,
    data: Splits | None = None,
    loaded: Loaded | None = None,
    ready: Callable[[], None] | None = None,
) -> Outcome:
    """Train a model; under torchrun together with the other ranks.

    Args:
        options: what to do.
        report: called on rank 0 with the numbers of every epoch, as in metrics.jsonl.
        data: the data set, if it is open already.
        loaded: the initial weights, if they have been read already.
        ready: called on rank 0 before the first step, when everything has been checked.

    Raises:
        DataError: the data set is missing or malformed, or too small for one step.
        ImageError: an image cannot be read, and bad ones are not to be skipped.
        TrainingError: the loss is not finite; a checkpoint cannot be written, or does not fit the run.
        WeightsError: the initial weights could not be loaded.
        ValueError: options that exclude each other, or no such device.
    """
    with StopRequest() as stop, worker_failures(), connect(options.device) as ranks:
        devices = [ranks.device] if ranks.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            return Trainer(options, ranks, stop, report, data, loaded, ready).run()


class Trainer:
    """A training run on one rank: its parts, its position, and the loop over epochs and steps."""

    def __init__(
        self,
        options: TrainOptions,
        ranks: Ranks,
        stop: StopRequest | None = None,
        report: Report | None = None,
        data: Splits | None = None,
        loaded: Loaded | None = None,
        ready: Callable[[], None] | None = None,
    ) -> None:
        self.options = options
        self.ranks = ranks
        self._stop = stop or StopRequest()
        self._report = report
        self._ready = ready
        self._folder = Path(options.output).expanduser()
        self._data = data or keep_shrunk(open_data(options, ranks), self._folder, options.cache_size)
        saved_labels(self._data.train.classes)  # not at the end of a long run
        classes = len(self._data.train.classes)
        images = len(self._data.train)
        if classes < 2:
            raise DataError(f"{options.data} has one class, {self._data.train.classes[0]}: two or more are required")
        global_batch = options.batch_size * options.accumulate * ranks.size
        self.steps_per_epoch = images // global_batch
        if not self.steps_per_epoch:
            raise DataError(
                f"{options.data}: {images} training images do not fill one global batch of {global_batch} "
                "(batch size x accumulation x ranks)"
            )
        preprocessing = _preprocessing(options, self._data)
        self._facts = Facts(options.asdict(), self._data.train.classes, preprocessing, images, global_batch)
        model, ema = build.build_model(options, classes, ranks, loaded)
        model.categories, model.preprocessing = tuple(self._data.train.classes), preprocessing
        optimizer = build.make_optimizer(model, options, global_batch)
        scheduler = build.make_scheduler(optimizer, options, self.steps_per_epoch)
        scaler = torch.amp.GradScaler(ranks.device.type, enabled=options.amp == "fp16")
        self.parts = Parts(model, ema, optimizer, scheduler, scaler)
        self.position = Position()
        self._skipped: set[str] = set()
        found = find_checkpoint(options, ranks.gather((self._folder / CHECKPOINT).exists()))
        if found is not None:
            self.position = restore(found, self.parts, self._facts)
            logger.info("going on from %s: epoch %d, step %d", found, self.position.epoch + 1, self.position.step)
        self._stepper = Stepper(self.parts, options, ranks, self._facts, self._data.train.labels)

    def run(self) -> Outcome:
        """Train to the end, or until a signal stops the run."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self.ranks.first:
                (self._folder / OPTIONS).write_text(json.dumps(self._facts.options, indent=1) + "\n", "utf-8")
                val = self._data.val
                if val is not None:
                    names = map(val.name, range(len(val)))
                    (self._folder / VALIDATION).write_bytes(b"".join(os.fsencode(name) + b"\n" for name in names))
        except OSError as error:
            raise TrainingError(f"the output folder {self._folder} cannot be written: {reason(error)}") from error
        recorder, metrics = None, None
        if self.ranks.first:
            if self._ready is not None:
                self._ready()
            recorder = Recorder(self._folder, self.position.epoch, tensorboard=self.options.tensorboard)
        try:
            while self.position.epoch < self.options.epochs and not self._stagnates(self.position.epoch):
                if not self._train_epoch():
                    return Outcome(self._folder, self.position.epoch, False, metrics)
                metrics = self._finish_epoch(recorder)
        finally:
            if recorder is not None:
                recorder.close()
        if self.ranks.first:
            draw_curves(self._folder)
            if self.options.save_pretrained:
                write_pretrained(self._folder, self.parts.model, self._facts, again=metrics is not None)
        return Outcome(self._folder, self.position.epoch, True, metrics)

    def _train_epoch(self) -> bool:
        """Do the steps that are left in this epoch; return False where a signal ended the run."""
        build.set_training_mode(self.parts.model, self.options)
        position, save_every = self.position, self.options.save_every
        label = f"epoch {position.epoch + 1}/{self.options.epochs}"
        started = time.monotonic()
        bar = progress_bar(self.steps_per_epoch, label, unit="steps", enabled=self.ranks.first, leave=False)
        with closing(self._batches()) as batches, bar:
            bar.update(position.step)
            while position.step < self.steps_per_epoch:
                stop = self._train_step(list(islice(batches, self.options.accumulate)))
                now = time.monotonic()
                position.seconds, started = position.seconds + now - started, now
                bar.update(1)
                if stop or (save_every and position.step % save_every == 0):
                    self._save()
                if stop:
                    return False
        return True

    def _batches(self) -> Generator[LabelledBatch, None, None]:
        options, epoch, ranks = self.options, self.position.epoch, self.ranks
        self._size = options.size_at(epoch)
        mean, std = self._facts.preprocessing.mean, self._facts.preprocessing.std
        return load_batches(
            self._data.train,
            training_transform(options, self._size, mean, std),
            training_batches(self._facts.images, options, epoch, ranks.rank, ranks.size, self.position.step),
            seed=(options.seed, epoch),
            workers=options.workers,
            skip_bad_images=options.skip_bad_images,
            pin_memory=ranks.device.type == "cuda",
        )

    def _train_step(self, batches: list[LabelledBatch]) -> bool:
        """Do one step of the optimiser; return whether a signal has asked to stop."""
        position = self.position
        torch.manual_seed(derive_seed(self.options.seed, "step", position.epoch, position.step, self.ranks.rank))
        result = self._stepper.take(batches, self._stop)
        if not math.isfinite(result.loss):
            path = self._folder / CHECKPOINT
            left = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint had been written yet"
            raise TrainingError(
                f"the loss is {result.loss} in epoch {position.epoch + 1}, step {position.step + 1} of "
                f"{self.steps_per_epoch}, at a learning rate of {self._lr():.6g}; the step was not taken, {left}. "
                "A lower --lr, a --warmup or a --clip may help"
            )
        position.loss_sum += result.loss
        position.skipped += len(result.bad)
        for message in result.bad:
            if message not in self._skipped:
                logger.warning("skipped %s", message)
        self._skipped.update(result.bad)
        position.step += 1
        return result.stop

    def _lr(self) -> float:
        return max(float(group["lr"]) for group in self.parts.optimizer.param_groups)

    def _finish_epoch(self, recorder: Recorder | None) -> dict[str, Any]:
        """Validate, record and save; return the epoch's numbers."""
        position, options = self.position, self.options
        images = self.steps_per_epoch * self._facts.global_batch
        last = position.epoch + 1 == options.epochs
        numbers: dict[str, Any] = {
            "epoch": position.epoch + 1,
            "lr": self._lr(),
            "size": self._size,
            "train_loss": position.loss_sum / self.steps_per_epoch,
            "seconds": round(position.seconds, 2),
            "images_per_second": round(images / max(position.seconds, 1e-9), 1),
            "skipped_images": position.skipped,
        }
        if self._data.val is not None and (last or (position.epoch + 1) % options.eval_every == 0):
            self._save()  # validation may take longer than a SIGTERM leaves time
            numbers |= self._validate(self._data.val)
        if recorder is not None:
            recorder.write(numbers)
            if self._report is not None:
                self._report(numbers)
        self._keep_weights(numbers, last)
        self.position = Position(epoch=position.epoch + 1, best=position.best, best_epoch=position.best_epoch)
        self._save()
        return numbers

    def _stagnates(self, epochs: int) -> bool:
        """Return whether the best epoch lies further back than the options allow."""
        best, patience = self.position.best_epoch, self.options.patience
        return bool(best and patience) and epochs - best >= patience

    def _validate(self, source: ImageSource) -> dict[str, Any]:
        models: dict[str, nn.Module] = {"": self.parts.model}
        if self.parts.model_ema is not None:
            models["ema_"] = self.parts.model_ema.module
        numbers: dict[str, Any] = {}
        for prefix, model in models.items():
            self.ranks.copy_from_first(model.buffers())  # each rank has seen other images; rank 0's are kept
            result = evaluate(
                model.eval(),
                source,
                self._facts.preprocessing,
                self.ranks,
                batch_size=self.options.batch_size,
                workers=self.options.workers,
                skip_bad_images=self.options.skip_bad_images,
            )
            numbers[f"{prefix}val_loss"] = result.loss
            numbers[f"{prefix}val_top1_error"] = result.top1_error
            if len(source.classes) > TOP:  # else it is always 0
                numbers[f"{prefix}val_top5_error"] = result.top5_error
        return numbers

    def _keep_weights(self, numbers: dict[str, Any], last: bool) -> None:
        error = numbers.get("ema_val_top1_error", numbers.get("val_top1_error"))
        best = error is not None and (self.position.best is None or error <= self.position.best)
        if best:
            self.position.best, self.position.best_epoch = error, numbers["epoch"]
        last = last or self._stagnates(numbers["epoch"])
        if not self.ranks.first or not (last or best):
            return
        content = final_content(self.parts, self._facts, numbers)
        for wanted, name in ((last, FINAL), (best, BEST)):
            if wanted:
                save_atomically(content, self._folder / name)

    def _save(self) -> None:
        if self.ranks.first:
            save_checkpoint(self._folder, self.parts, self.position, self._facts)


def _preprocessing(options: TrainOptions, data: Splits) -> Preprocessing:
    """Return how images are prepared for the trained model."""
    crop = options.size
    mean, std = ((x[0], x[1], x[2]) for x in (options.mean or data.mean, options.std or data.std))
    return Preprocessing(resize=round(crop / options.crop_ratio), crop=crop, mean=mean, std=std)
