"""The training loop: from options to a trained model in the run's folder."""

import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from ..utils.distributed import Ranks, connect
from ..utils.errors import DataError, TrainingError
from ..utils.files import writing
from ..utils.log import warn_once
from ..utils.optional import require
from ..utils.progress import progress_bar
from ..weights.folder import check_categories
from ..weights.load import Loaded
from . import checkpoint, components
from .checkpoint import RunProgress
from .data import ImageSource, Splits, open_data
from .evaluation import TOP, evaluate
from .loading import LabelledBatch, load_batches, training_batches, training_transform, worker_failures
from .metrics import draw_curves, write_metrics
from .options import TrainOptions
from .seeds import derive_seed
from .shrinking import keep_shrunk
from .signals import StopRequest

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]
_AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Outcome:
    """Result of a run."""

    folder: Path
    """Folder of the run: checkpoints, metrics.jsonl, curves."""
    epochs: int
    """Number of complete epochs."""
    finished: bool
    """False if a signal stopped the run; ``--resume auto`` goes on."""
    metrics: dict[str, Any] | None
    """Numbers of the last complete epoch; None if this process completed none."""


def train(
    options: TrainOptions, report: Report | None = None, data: Splits | None = None, loaded: Loaded | None = None
) -> Outcome:
    """Train a model; under torchrun together with the other ranks.

    Args:
        options: what to do.
        report: called on rank 0 with the numbers of every epoch, as in metrics.jsonl.
        data: the data set, if it is open already.
        loaded: the initial weights, if they have been read already.

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
            return Trainer(options, ranks, stop, report, data, loaded).run()


class Trainer:
    """A training run on one rank: its state, its progress, and the loop over epochs and steps."""

    def __init__(
        self,
        options: TrainOptions,
        ranks: Ranks,
        stop: StopRequest | None = None,
        report: Report | None = None,
        data: Splits | None = None,
        loaded: Loaded | None = None,
    ) -> None:
        self.options = options
        self.ranks = ranks
        self._stop = stop or StopRequest()
        self._report = report
        self._folder = Path(options.output).expanduser()
        if options.tensorboard:
            require("tensorboard", "2")
        self._data = data or keep_shrunk(open_data(options, ranks), self._folder, options.cache_size)
        classes, images = self._data.train.classes, len(self._data.train)
        check_categories(classes)  # not at the end of a long run
        if len(classes) < 2:
            raise DataError(f"{options.data} has one class, {classes[0]}: two or more are required")
        self._global_batch = options.batch_size * options.accumulate * ranks.size
        self.steps_per_epoch = images // self._global_batch
        if not self.steps_per_epoch:
            raise DataError(
                f"{options.data}: {images} training images do not fill one global batch of {self._global_batch} "
                "(batch size x accumulation x ranks)"
            )
        self._content = checkpoint.common_content(options, classes, images, self._global_batch)

        self.model, self.model_ema = components.build_model(options, len(classes), ranks, loaded)
        self.optimizer = components.make_optimizer(self.model, options, self._global_batch)
        self.scheduler = components.make_scheduler(self.optimizer, options, self.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=options.amp == "fp16")
        names = ("model", "model_ema", "optimizer", "scheduler", "scaler")  # as a checkpoint has them
        self._parts = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        self._criterion = components.make_criterion(options, self._data.train).to(ranks.device)
        self._mix = components.make_mix(options, len(classes))
        self._teachers = components.build_teachers(options, classes, ranks)

        self.progress = RunProgress()
        path = checkpoint.find_checkpoint(options)
        if ranks.gather(path) != [path] * ranks.size:
            raise TrainingError(f"{self._folder} is not the same for all ranks: all machines must share it")
        if path is not None:
            self.progress = checkpoint.restore(path, self._parts, self._content)
            logger.info("going on from %s: epoch %d, step %d", path, self.progress.epoch + 1, self.progress.step)
        self._forward: nn.Module = self.model
        self._without_sync: Callable[[], AbstractContextManager[None]] = nullcontext
        if ranks.size > 1:  # averages the gradients over the ranks
            devices = [ranks.device.index] if ranks.device.type == "cuda" else None
            parallel = DistributedDataParallel(self.model, device_ids=devices, gradient_as_bucket_view=True)
            self._forward, self._without_sync = parallel, parallel.no_sync

    def run(self) -> Outcome:
        """Train to the end, or until a signal stops the run."""
        metrics = None
        if self.ranks.first:
            self._start()
        while self.progress.epoch < self.options.epochs and not self._stagnates(self.progress.epoch):
            if not self._train_epoch():
                return Outcome(self._folder, self.progress.epoch, False, metrics)
            metrics = self._finish_epoch()
        if self.ranks.first:
            draw_curves(self._folder)
            if self.options.save_pretrained:
                checkpoint.write_pretrained(self._folder, self.model.weights_record)
        return Outcome(self._folder, self.progress.epoch, True, metrics)

    def _start(self) -> None:
        """Write the options and the list of validation images."""
        val = self._data.val
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self._content["options"], indent=1) + "\n"
            (self._folder / checkpoint.OPTIONS).write_text(text, "utf-8")
            if val is not None:
                names = os.fsencode("".join(f"{name}\n" for name in val.names))
                (self._folder / checkpoint.VALIDATION).write_bytes(names)

    def _train_epoch(self) -> bool:
        """Do the steps that are left in this epoch; return False if a signal ended the run."""
        components.set_training_mode(self.model, self.options)
        progress, save_every = self.progress, self.options.save_every
        label = f"epoch {progress.epoch + 1}/{self.options.epochs}"
        started = time.monotonic()
        bar = progress_bar(self.steps_per_epoch, label, unit="steps", enabled=self.ranks.first, leave=False)
        with closing(self._batches()) as batches, bar:
            bar.update(progress.step)
            while progress.step < self.steps_per_epoch:
                stop = self._train_step(list(islice(batches, self.options.accumulate)))
                now = time.monotonic()
                progress.seconds, started = progress.seconds + now - started, now
                bar.update(1)
                if stop or (save_every and progress.step % save_every == 0):
                    self._save()
                if stop:
                    return False
        return True

    def _batches(self) -> Generator[LabelledBatch, None, None]:
        options, epoch, ranks = self.options, self.progress.epoch, self.ranks
        self._size = options.size_at(epoch)
        return load_batches(
            self._data.train,
            training_transform(options, self._size),
            training_batches(len(self._data.train), options, epoch, ranks.rank, ranks.size, self.progress.step),
            seed=(options.seed, epoch),
            workers=options.workers,
            skip_bad_images=options.skip_bad_images,
            pin_memory=ranks.device.type == "cuda",
        )

    def _train_step(self, batches: Sequence[LabelledBatch]) -> bool:
        """Do one step with the average gradient over the batches; return whether some rank was asked to stop."""
        progress = self.progress
        torch.manual_seed(derive_seed(self.options.seed, "step", progress.epoch, progress.step, self.ranks.rank))
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum, bad = 0.0, [message for batch in batches for message in batch.bad]
        for number, batch in enumerate(batches, 1):
            last = number == len(batches)
            with nullcontext() if last else self._without_sync():
                loss = self._loss(batch)
                loss_sum += float(loss.detach())
                if last:  # the ranks agree before the step that would spoil the weights or leave a rank waiting
                    losses, messages, stops = zip(
                        *self.ranks.gather((loss_sum, bad, self._stop.requested)), strict=True
                    )
                    mean_loss = sum(losses) / len(losses) / len(batches)
                    self._check_loss(mean_loss)
                scaled = self.scaler.scale(loss / len(batches))
                scaled.backward()  # type: ignore[no-untyped-call,unused-ignore]
        self._update()
        for message in chain.from_iterable(messages):
            progress.skipped += 1
            warn_once(logger, message, "skipped %s", message)
        progress.loss_sum += mean_loss
        progress.step += 1
        return any(stops)

    def _check_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} in epoch {self.progress.epoch + 1}, step {self.progress.step + 1} of "
                f"{self.steps_per_epoch}, at a learning rate of {self._lr():.6g}; the step was not taken, nor "
                f"{self._folder / checkpoint.CHECKPOINT} changed. A lower --lr, a --warmup or a --clip may help"
            )

    def _loss(self, batch: LabelledBatch) -> Tensor:
        device, options = self.ranks.device, self.options
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
        temperature = self.options.temperature
        with torch.no_grad():
            outputs = [(teacher(images).float() / temperature).softmax(1) for teacher in self._teachers]
            probabilities = torch.stack(outputs).mean(0)
        return functional.cross_entropy(logits.float() / temperature, probabilities) * temperature**2

    def _update(self) -> None:
        if self.options.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with warnings.catch_warnings():  # the scaler may pass over the first step; the rate follows the position
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.scheduler.step()
        if self.model_ema is not None:
            self.model_ema.update_parameters(self.model)

    def _lr(self) -> float:
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def _finish_epoch(self) -> dict[str, Any]:
        """Validate, record and save; return the epoch's numbers."""
        progress, options, number = self.progress, self.options, self.progress.epoch + 1
        images = self.steps_per_epoch * self._global_batch
        numbers: dict[str, Any] = {
            "epoch": number,
            "lr": self._lr(),
            "size": self._size,
            "train_loss": progress.loss_sum / self.steps_per_epoch,
            "seconds": round(progress.seconds, 2),
            "images_per_second": float(f"{images / max(progress.seconds, 1e-9):.4g}"),
            "skipped_images": progress.skipped,
        }
        last = number == options.epochs
        if self._data.val is not None and (last or self._stagnates(number) or number % options.eval_every == 0):
            self._save()  # validation may take longer than a SIGTERM leaves time
            numbers |= self._validate(self._data.val)
        error = numbers.get("ema_val_top1_error", numbers.get("val_top1_error"))
        best = error is not None and (progress.best is None or error <= progress.best)
        if best:
            progress.best, progress.best_epoch = error, number
        if self.ranks.first:
            write_metrics(self._folder, numbers)
            if self.options.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                with SummaryWriter(str(self._folder / "tensorboard")) as board:  # type: ignore[no-untyped-call,unused-ignore]
                    for name in numbers.keys() - {"epoch"}:
                        board.add_scalar(name, numbers[name], number)
            if self._report is not None:
                self._report(numbers)
            model = self.model if self.model_ema is None else self.model_ema.module
            facts = {"averaged": self.model_ema is not None, "block_activation": self.model.config.block_activation}
            content = {"model": model.state_dict(), "metrics": numbers, **facts, **self._content}
            if last or self._stagnates(number):
                checkpoint.save_atomically(content, self._folder / checkpoint.FINAL)
            if best:
                checkpoint.save_atomically(content, self._folder / checkpoint.BEST)
        self.progress = RunProgress(epoch=number, best=progress.best, best_epoch=progress.best_epoch)
        self._save()
        return numbers

    def _stagnates(self, epochs: int) -> bool:
        """Return whether the best epoch lies further back than the options allow."""
        best, patience = self.progress.best_epoch, self.options.patience
        return bool(best and patience) and epochs - best >= patience

    def _validate(self, source: ImageSource) -> dict[str, Any]:
        models: dict[str, nn.Module] = {"": self.model}
        if self.model_ema is not None:
            models["ema_"] = self.model_ema.module
        numbers: dict[str, Any] = {}
        for prefix, model in models.items():
            self.ranks.copy_from_first(model.buffers())  # each rank has seen other images; rank 0's are kept
            result = evaluate(model.eval(), source, self.options.preprocessing(), self.ranks, **self.options.evaluation)
            numbers[f"{prefix}val_loss"] = result.loss
            numbers[f"{prefix}val_top1_error"] = result.top1_error
            if len(source.classes) > TOP:  # else it is always 0
                numbers[f"{prefix}val_top5_error"] = result.top5_error
        return numbers

    def _save(self) -> None:
        """Write what the run needs to go on; seed and progress stand for random generators, see :mod:`.seeds`."""
        if self.ranks.first:
            state = {name: part.state_dict() for name, part in self._parts.items()}
            content = {**state, "progress": vars(self.progress), **self._content}
            checkpoint.save_atomically(content, self._folder / checkpoint.CHECKPOINT)
