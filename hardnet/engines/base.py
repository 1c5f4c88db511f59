"""The module that every engine returns: same input and output as the model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..images.preprocess import Preprocessing
from ..models.features import FeatureInfo
from ..models.network import ImageModule, check_images

Output = Tensor | list[Tensor]
Run = Callable[[Tensor], Output]


@dataclass(frozen=True)
class Plan:
    """How a model is run."""

    engine: str
    precision: str
    device: torch.device
    threads: int
    """CPU threads."""
    patience: int = 0
    """Images of one shape in a row before anything is compiled for this shape."""
    preprocessing: Preprocessing | None = None
    """Normalises uint8 images; without it, there are only float32 images."""


class Accelerated(nn.Module):
    """A model in a faster engine: the signature and the output of the model, for evaluation only.

    It has no parameters: later changes of the model have no effect on it, and it stays on its device.

    Attributes:
        engine: the engine that was chosen, such as "openvino".
        precision: "fp32", "bf16", "fp16" or "int8"; the output is always float32.
        device: the device of its input and output.
        threads: the number of CPU threads that it uses.
        num_classes: of the model, None for a feature pyramid.
        feature_info: of the feature pyramid, None for a classifier.
        categories: names of the model's classes; None if unknown.
        preprocessing: preprocessing of the model's weights; None if unknown.
        takes_pixels: whether it takes uint8 images as well, which it normalises by ``preprocessing``.

    Raises:
        ValueError: in ``forward``, an input of a shape that the model refuses, of another type than float32 (or uint8,
            with ``takes_pixels``) or on another device.
        RuntimeError: in ``train``.
    """

    def __init__(self, model: ImageModule, run: Run, plan: Plan) -> None:
        super().__init__()
        self.config = model.config
        self.in_chans = model.in_chans
        self.min_input_size = model.min_input_size
        self.categories: tuple[str, ...] | None = model.categories
        self.weights_record = model.weights_record
        self.num_classes: int | None = getattr(model, "num_classes", None)
        self.feature_info: tuple[FeatureInfo, ...] | None = getattr(model, "feature_info", None)
        self.engine, self.precision, self.device, self.threads = plan.engine, plan.precision, plan.device, plan.threads
        self.preprocessing = plan.preprocessing or model.preprocessing
        self.takes_pixels = plan.preprocessing is not None
        self._run = run
        super().train(False)

    def forward(self, x: Tensor) -> Output:
        """(N, in_chans, H, W) -> the output of the model."""
        check_images(x, self.config.name, self.in_chans, self.min_input_size, pixels=self.takes_pixels)
        if x.dtype not in (torch.float32, torch.uint8):
            raise ValueError(f"the {self.engine} engine takes float32 images in every precision, got {x.dtype}")
        if x.device != self.device:
            raise ValueError(f"the {self.engine} engine was built for {self.device}, the images are on {x.device}")
        # Outside inference mode: what is built in the first call must work for callers in any mode.
        with torch.inference_mode(False), torch.no_grad():
            return self._run(x) if len(x) else self._empty(x)

    def _empty(self, x: Tensor) -> Output:
        """Return the output for an empty batch, which some engines refuse."""
        output = self._run(x.new_zeros(1, *x.shape[1:]))
        return [each[:0] for each in output] if isinstance(output, list) else output[:0]

    def train(self, mode: bool = True) -> Accelerated:
        """Stay in evaluation mode.

        Raises:
            RuntimeError: ``mode`` is true.
        """
        if mode:
            raise RuntimeError("an accelerated model is for evaluation only: train the model, then accelerate it again")
        return self

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows in the parentheses."""
        return f"{self.config.name}, {self.engine}, {self.precision}, {self.device}, {self.threads} threads"


def normalising(run: Run, preprocessing: Preprocessing | None) -> Run:
    """Return a function that normalises uint8 images first."""

    def normalised(x: Tensor) -> Output:
        return run(preprocessing.normalise(x) if preprocessing is not None and x.dtype == torch.uint8 else x)

    return normalised


_SLICE_PIXELS = 8 * 224 * 224


def images_at_once(height: int, width: int) -> int:
    """Return how many images of a size one slice of a batch has at most."""
    return max(1, _SLICE_PIXELS // (height * width))


def in_slices(run: Run) -> Run:
    """Return a function that runs large batches in equal parts of at most 8 images of 224 x 224 pixels.

    On CPUs, this bounds the memory, and activations stay in the caches and in memory that the process has already.
    """

    def sliced(x: Tensor) -> Output:
        parts = -(-len(x) // images_at_once(x.shape[2], x.shape[3]))
        if parts < 2:
            return run(x)
        outputs = [run(part) for part in x.tensor_split(parts)]
        if isinstance(outputs[0], Tensor):
            return torch.cat(cast("list[Tensor]", outputs))
        return [torch.cat(level) for level in zip(*outputs, strict=True)]

    return sliced


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hide warnings and log messages of torch's exporters about their internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "torch._export")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
