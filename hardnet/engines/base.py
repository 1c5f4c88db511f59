"""The module that every engine returns, with the input and output of the model; what the engines have in common."""

from __future__ import annotations

import logging
import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn, cast

import torch
from torch import Tensor, nn

from ..images.preprocess import Preprocessing
from ..models.config import FeatureInfo
from ..models.network import ImageModule, check_images

Output = Tensor | list[Tensor]
Run = Callable[[Tensor], Output]


class EngineSettings(NamedTuple):
    """Settings with which a model is run."""

    engine: str
    precision: str
    device: torch.device
    threads: int  # of the CPU
    compile_after: int  # compile for a shape after this many consecutive images of it
    preprocessing: Preprocessing | None  # of uint8 images; without it, there are only float32 images
    several: bool  # True if the model returns a list of feature maps
    checked: bool  # True if the output is compared with the model's


class Conversion(NamedTuple):
    """A model that is written to a file."""

    model: nn.Module  # folded, in evaluation mode, in float32 on the CPU
    example: Tensor  # its input: two images or more, not square, since equal sizes become one dimension
    precision: str
    calibration: list[Tensor]  # for int8: its inputs
    outputs: list[str]  # their names; empty where no name matters
    texts: dict[str, str]  # for readers of the file


class Accelerated(nn.Module):
    """A model in a faster engine: the signature and the output of the model, for evaluation only.

    It has no parameters: later changes of the model have no effect on it, and it stays on its device. An image with a
    NaN or an infinite value gets an output of NaN.

    Attributes:
        engine: the engine that was chosen, such as "openvino".
        precision: of the computation; the output is always float32.
        device: the device of its input and output.
        threads: the number of CPU threads that it uses.
        num_classes: of the model; None for a feature pyramid.
        feature_info: of a feature pyramid; None for other models.
        categories: names of the model's classes; None if unknown.
        preprocessing: preprocessing of the images that it takes; None if unknown.
        takes_pixels: True if it takes uint8 images as well, which it normalises by ``preprocessing``.

    Raises:
        ValueError: in ``forward``, an input of a shape, type or device that it does not take.
        RuntimeError: in ``train``.
        TypeError: it is pickled.
    """

    def __init__(self, model: ImageModule, run: Run, settings: EngineSettings) -> None:
        super().__init__()
        self.config = model.config
        self.in_chans = model.in_chans
        self.min_input_size = model.min_input_size
        self.categories: tuple[str, ...] | None = model.categories
        self.weights_record = model.weights_record
        self.num_classes: int | None = getattr(model, "num_classes", None)
        features = model.feature_info if settings.several else None
        self.feature_info = cast("tuple[FeatureInfo, ...] | None", features)
        self.engine, self.precision = settings.engine, settings.precision
        self.device, self.threads = settings.device, settings.threads
        self.preprocessing = settings.preprocessing or model.preprocessing
        self.takes_pixels = settings.preprocessing is not None
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
            if len(x):
                return self._run(x)
            # Some engines refuse an empty batch.
            return map_levels(lambda level: level[:0], self._run(x.new_zeros(1, *x.shape[1:])))

    def train(self, mode: bool = True) -> Accelerated:
        """Stay in evaluation mode; RuntimeError if ``mode`` is true."""
        if mode:
            raise RuntimeError("an accelerated model is for evaluation only: train the model, then accelerate it again")
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Accelerated:
        return self  # nothing changes it

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an accelerated model cannot be pickled: pickle the model, and call hardnet.accelerate in the other process"
        )

    def extra_repr(self) -> str:
        """Text that ``print(model)`` shows in parentheses."""
        return f"{self.config.name}, {self.engine}, {self.precision}, {self.device}, {self.threads} threads"


def _is_finite(x: Tensor) -> bool:
    """Return True if all values are finite; on a GPU, False also if their sum is not."""
    if x.device.type != "cpu":
        return math.isfinite(x.sum().item())
    values = x.detach().float().numpy()  # torch's threads would spin while those of another engine run
    return math.isfinite(values.max()) and math.isfinite(values.min())


def map_levels(function: Callable[[Tensor], Tensor], output: Output) -> Output:
    """Apply a function to the output of a model, in a pyramid to each feature map."""
    return function(output) if isinstance(output, Tensor) else [function(level) for level in output]


def levels_of(output: Output) -> list[Tensor]:
    """Return the feature maps of a pyramid, or the one output of another model."""
    return [output] if isinstance(output, Tensor) else output


def difference(output: Output, expected: Output) -> float:
    """Return the largest difference, relative to the largest expected value; infinite if the shapes differ."""
    largest = 0.0
    for values, reference in zip(levels_of(output), levels_of(expected), strict=True):
        if values.shape != reference.shape:
            return math.inf
        error = (values - reference).abs().max() / reference.abs().max().clamp(min=1e-30)
        largest = max(largest, float(error.nan_to_num(math.inf)))
    return largest


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Set torch's number of threads within the block."""
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)


_SLICE_PIXELS = 8 * 224 * 224


def images_at_once(height: int, width: int) -> int:
    """Return how many images of a size one slice of a batch has at most."""
    return max(1, _SLICE_PIXELS // (height * width))


def completed(
    run: Run, preprocessing: Preprocessing | None = None, torch_threads: int | None = None, sliced: bool = True
) -> Run:
    """Return a function that does around an engine what is the same for all.

    It normalises uint8 images, if there is ``preprocessing``, and sets torch's number of threads for each call. Large
    batches are ``sliced`` in equal parts of at most 8 images of 224 x 224 pixels: on CPUs, this bounds the memory, and
    activations stay in the caches and in memory that the process has already. An image with a NaN or an infinite value
    gets NaN: clipped activations would make a finite output of it.
    """

    def run_part(x: Tensor) -> Output:
        if x.dtype == torch.uint8:
            return run(preprocessing.normalise(x) if preprocessing is not None else x)
        finite = _is_finite(x)
        output = run(x)
        if finite:
            return output
        valid = x.flatten(1).isfinite().all(1)
        return map_levels(lambda level: level.where(valid.view(-1, *[1] * (level.dim() - 1)), math.nan), output)

    def run_batch(x: Tensor) -> Output:
        parts = -(-len(x) // images_at_once(x.shape[2], x.shape[3])) if sliced else 1
        with cpu_threads(torch_threads or torch.get_num_threads()):
            if parts < 2:
                return run_part(x)
            outputs = [run_part(part) for part in x.tensor_split(parts)]
        levels = [torch.cat(level) for level in zip(*map(levels_of, outputs), strict=True)]
        return levels if isinstance(outputs[0], list) else levels[0]

    return run_batch


def random_images(count: int, channels: int, height: int, width: int, uint8: bool) -> Tensor:
    """Return images that are the same in every call: (N, C, H, W), normal distribution or uint8."""
    generator, shape = torch.Generator().manual_seed(height * width), (count, channels, height, width)
    if uint8:
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator)


_TALKATIVE = ("nncf", "onnxscript", "torch._export", "torch.export", "torch.onnx", "torch.utils.cpp_extension")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep what converters do besides converting from the caller: messages, random numbers, the search path."""
    path, state = list(sys.path), random.getstate()
    talkative = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [(logger, logger.level) for logger in (logging.root, *talkative)]  # OpenVINO 2024.6 sets that of the root
    for logger in talkative:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(state)
        sys.path[:] = path
        for logger, level in levels:
            logger.setLevel(level)
