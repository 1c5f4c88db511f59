"""Describe a run before it starts, estimate its time, and summarise its result in text and pictures."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..factory import create_model
from ..images.preprocess import limit_aspect_ratio
from ..utils.devices import usable_processors
from ..utils.distributed import Ranks
from ..utils.files import write_atomically, writing
from ..utils.text import counted, csv_row, printable
from ..weights.load import load_weights
from .checkpoint import BEST, FINAL, FOLDER
from .comparison import evaluate_weights
from .data import ImageSource, Splits
from .evaluation import Evaluation
from .loading import load_batches, training_transform, worker_failures
from .metrics import FEW_CLASSES, METRICS, draw_confusion, read_metrics
from .options import TrainOptions

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

MISTAKES, MISTAKES_PICTURE, CONFUSION = "mistakes.csv", "mistakes.png", "confusion.png"

_LISTED = 10  # classes and mistakes in the text
_SIDE, _COLUMNS, _ROWS = 180, 6, 4  # thumbnails of the picture of mistakes: longest side in pixels, and their number


def describe_data(data: Splits) -> list[str]:
    """Return lines about a data set: classes, images of each, what was left out."""
    train, val = data.train, data.val
    sizes = f"{counted(len(train), 'image')} for training, {0 if val is None else len(val):,} for validation"
    lines = [f"{counted(len(train.classes), 'class')}, {sizes}"]
    trained, validated = Counter(train.labels), Counter(() if val is None else val.labels)
    rows = [(trained[label], validated[label], name) for label, name in enumerate(train.classes)]
    listed = rows if len(rows) <= _LISTED else [min(rows), max(rows)]
    texts = [f"{printable(name)} {images} + {held_out}" for images, held_out, name in listed]
    lines.append(f"images of a class: {(', ' if listed is rows else ' to ').join(texts)}")
    if data.left_out:
        lines.append(f"left out: {data.left_out}")
    if val is None:
        lines.append("no validation: neither errors nor a best epoch will be known (--val-fraction holds images out)")
    return lines


def describe_run(run: TrainOptions, ranks: Ranks) -> str:
    """Return a line about what is trained and where."""
    weights = "new weights" if run.weights is None else f"the weights {printable(run.weights)}"
    threads = counted(torch.get_num_threads(), "thread") if ranks.device.type == "cpu" else ""
    workers = counted(min(run.workers, usable_processors()), "data worker")
    parts = [str(ranks.device), threads, workers, counted(ranks.size, "rank") if ranks.size > 1 else ""]
    return f"{run.model} from {weights} on {', '.join(filter(None, parts))}"


@worker_failures()
def estimate_seconds(run: TrainOptions, data: Splits, ranks: Ranks) -> float:
    """Return the time of a run in seconds, from a few images, one step, and one start of the data workers.

    Workers start twice in an epoch: for training and for validation.
    """
    images, count = len(data.train), min(len(data.train), 8)
    transform = training_transform(run, run.size)
    batches = [[position * images // count] for position in range(count)]
    started = time.perf_counter()
    loaded = load_batches(data.train, transform, batches, seed=(0, 0), workers=run.workers, skip_bad_images=True)
    times = [time.perf_counter() for _ in loaded]
    reading = (times[-1] - times[0]) / max(count - 1, 1)
    start = time.perf_counter() - started - count * reading if run.workers else 0.0

    model = create_model(run.model, num_classes=len(data.train.classes)).to(ranks.device)
    model.train(not run.freeze).requires_grad_(not run.freeze)
    pixels = torch.rand(min(max(run.batch_size, 2), 8), 3, run.size, run.size, device=ranks.device)
    for _ in range(2):  # the first one prepares what the second one takes
        started = time.perf_counter()
        loss = model(pixels.contiguous(memory_format=torch.channels_last)).logsumexp(1).mean()
        if not run.freeze:
            loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        loss.item()
        step = (time.perf_counter() - started) / len(pixels)
    validated = 0 if data.val is None else len(data.val) / run.eval_every
    return run.epochs * (2 * start + (images * (reading + step) + validated * (reading + step / 3)) / ranks.size)


def summarise_result(run: TrainOptions, data: Splits, ranks: Ranks) -> list[str]:
    """Evaluate the weights that a finished run leaves on its validation images, and write its mistakes to its folder.

    Every rank must call this function. The lines about the result end with the command that classifies a picture.
    """
    folder, val, lines = Path(run.output).expanduser(), data.val, []
    if val is not None:
        loaded = load_weights(folder / BEST, model=run.model)
        measured = evaluate_weights(loaded, val, ranks, **run.evaluation).measured
        key = "ema_val_top1_error" if run.ema else "val_top1_error"
        epochs = read_metrics(folder / METRICS)
        best = min((numbers[key], -numbers["epoch"]) for numbers in epochs if key in numbers)
        wrong = f"{len(measured.mistakes)} of {counted(measured.images, 'validation image')} wrong"
        errors = f"{wrong} ({measured.top1_error:.2f} %); last epoch: {epochs[-1][key]:.2f} % wrong"
        lines = [f"best epoch, {-best[1]} of {len(epochs)}: {errors}", _class_line(measured, val.classes)]
        for image, _, answer, probability in measured.mistakes[:_LISTED]:
            name = printable(val.names[image])
            lines.append(f"  {name}: taken for {printable(val.classes[answer])} ({probability:.0%})")
        if len(measured.mistakes) > _LISTED:
            lines.append(f"  and {len(measured.mistakes) - _LISTED} more")
        if ranks.first:
            files = ", ".join(printable(str(path)) for path in _write_files(folder, val, measured))
            lines.append(f"these images and the confusions: {files}")
    folder = Path(run.output)
    content = folder / (FOLDER if run.save_pretrained else FINAL if val is None else BEST)
    lines.append(f"the model: {printable(str(content))}; last epoch: {printable(str(folder / FINAL))}")
    return [*lines, f"next: hardnet predict PICTURE --weights {printable(shlex.quote(str(folder)))}"]


def _class_line(measured: Evaluation, classes: Sequence[str]) -> str:
    rows = zip(measured.class_accuracies, classes, measured.class_top1, measured.class_images, strict=True)
    ranked = sorted((row for row in rows if row[3]), key=lambda row: row[0])
    texts = [f"{printable(name)} {right} of {images}" for _, name, right, images in ranked[:_LISTED]]
    return f"right by class, worst first: {', '.join(texts)}{', ...' if len(ranked) > _LISTED else ''}"


def _write_files(folder: Path, val: ImageSource, measured: Evaluation) -> list[Path]:
    """Write the mistakes as a list and a picture, and the confusion matrix of few classes; return the files."""
    rows = [csv_row("image", "class", "prediction", "probability")]
    for image, truth, answer, probability in measured.mistakes:
        rows.append(csv_row(val.names[image], val.classes[truth], val.classes[answer], f"{probability:.4f}"))
    with writing(folder / MISTAKES), write_atomically(folder / MISTAKES) as file:
        file.write(os.fsencode("\r\n".join([*rows, ""])))
    files = [folder / MISTAKES]
    if measured.mistakes:
        files.append(folder / MISTAKES_PICTURE)
        with writing(files[-1]), write_atomically(files[-1]) as file:
            draw_mistakes(val, measured).save(file, "PNG")
    if len(val.classes) <= FEW_CLASSES:
        files.append(folder / CONFUSION)
        classes = list(map(printable, val.classes))
        try:
            draw_confusion(files[-1], "validation images", classes, measured.confusion)
        except ImportError:
            logger.info("no %s: matplotlib is not installed (pip install matplotlib)", files.pop().name)
    return files


def draw_mistakes(val: ImageSource, measured: Evaluation) -> Image.Image:
    """Return a picture of the first images that are wrong, each with its name, its class and the prediction."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    mistakes = measured.mistakes[: _COLUMNS * _ROWS]
    columns, font = min(len(mistakes), _COLUMNS), ImageFont.load_default()
    width, height = _SIDE + 12, _SIDE + 44
    sheet = Image.new("RGB", (columns * width, -(-len(mistakes) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, mistake in enumerate(mistakes):
        left, top = number % columns * width + 6, number // columns * height + 6
        picture = limit_aspect_ratio(val.load(mistake.image)[0])
        sheet.paste(ImageOps.contain(picture, (_SIDE, _SIDE)), (left, top))
        classes = f"{val.classes[mistake.truth]} -> {val.classes[mistake.answer]} {mistake.probability:.0%}"
        for line, text in enumerate((val.names[mistake.image][-32:], classes[:32])):
            drawable = printable(text).encode("latin-1", "replace").decode("latin-1")  # what Pillow's own font has
            draw.text((left, top + _SIDE + 2 + 16 * line), drawable, "black", font)
    return sheet
