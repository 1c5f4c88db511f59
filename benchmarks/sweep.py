"""Compare every engine and precision with eager mode on many input shapes, in processes that may crash.

A process runs the shapes of one model, engine and precision. If it dies, the next one goes on with the shape after.
"""

from __future__ import annotations

import copy
import math
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from torch.nn import functional

from benchmarks.networks import OURS, Case, in_engine, settled_network
from benchmarks.photographs import calibration_images
from benchmarks.protocol import Remote

SHAPES = [(batch, side) for batch in range(1, 9) for side in range(32, 257, 32)]
"""Images per batch, height and width."""
TOLERANCES = {"fp32": 1e-4, "bf16": 1.25, "int8": 0.5}
"""Norm of the difference from eager mode's logits over their norm; in bf16 over that of eager mode's own difference."""


class Comparison:
    """One of our models in eager mode and in an engine."""

    def __init__(self, model: str, engine: str, precision: str) -> None:
        self.names = (OURS, model, engine, precision)
        self.eager = settled_network(Case(*self.names, 1, 224, 224))
        self.half = copy.deepcopy(self.eager).to(torch.bfloat16) if precision == "bf16" else None
        self.parts = torch.cat(calibration_images())
        self.fast: Any = None

    def deviation(self, batch: int, side: int) -> float | str:
        """Return the deviation for one shape, see :data:`TOLERANCES`, or why the engine refused it."""
        images = functional.interpolate(self.parts[:batch], (side, side), mode="bilinear", antialias=True)
        case = Case(*self.names, batch, side, side)
        try:
            if self.fast is None or case.engine == "torch":  # its graphs are compiled for one shape
                self.fast = in_engine(self.eager, case)
            with torch.inference_mode():
                expected = self.eager(images)
                scale = expected if self.half is None else self.half(images.to(torch.bfloat16)) - expected
                return float((self.fast(images) - expected).norm() / scale.norm())
        except NotImplementedError:
            raise
        except (RuntimeError, ValueError) as error:
            return f"{batch} x {side}: {error}"


def sweep_one(model: str, engine: str, precision: str) -> dict[str, Any]:
    """Return the number of shapes, those that crashed or were refused, and the deviations, ready for JSON."""
    crashes: list[str] = []
    answers: list[float | str] = []
    remote: Remote | None = None
    for batch, side in SHAPES:
        remote = remote or Remote(Comparison, model, engine, precision)
        try:
            answers.append(remote.ask("deviation", batch, side))
        except BrokenProcessPool:
            crashes.append(f"{batch} x {side}")
            remote = None
    deviations = [answer for answer in answers if not isinstance(answer, str)]
    return {
        **{"model": model, "engine": engine, "precision": precision, "shapes": len(SHAPES), "crashes": crashes},
        "refused": [answer for answer in answers if isinstance(answer, str)],
        "tolerance": TOLERANCES[precision],
        "outside_tolerance": sum(not deviation <= TOLERANCES[precision] for deviation in deviations),  # NaN counts
        "largest_deviation": float(f"{max(filter(math.isfinite, deviations), default=0.0):.3g}"),
    }
