"""Time a model: forward passes, quartiles, and realistic statistics for random weights."""

import statistics
import time
from collections.abc import Callable, Sequence
from timeit import timeit
from typing import TypeAlias

import torch
from torch import nn

Step: TypeAlias = Callable[[], object]  # one forward pass


def estimate_statistics(model: nn.Module, height: int, width: int) -> None:
    """Set the normalisation statistics from random images, so that activations have the range of a trained network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches, here one
    images = torch.randn(4, 3, min(height, 224), min(width, 224), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.train()(images)


def time_pass(model: nn.Module, images: torch.Tensor) -> None:
    """Run one forward pass to its end; (N, C, H, W)."""
    with torch.inference_mode():
        model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def timed_passes(step: Step, seconds: float) -> list[float]:
    """Repeat for about ``seconds``, at least once; return the duration of each pass in seconds.

    A first pass, in which the threads wake up, does not count if it is shorter than ``seconds``.
    """
    duration = timeit(step, number=1)
    if duration >= seconds:
        return [duration]
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() + times[-1] <= end:
        times.append(timeit(step, number=1))
    return times


def quartiles(sample: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile (linear interpolation) of at least one number."""
    lower, median, upper = statistics.quantiles(sample if len(sample) > 1 else [*sample, *sample], method="inclusive")
    return lower, median, upper
