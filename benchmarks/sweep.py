"""Compare every engine and precision with eager mode on many input shapes, in child processes that may crash.

A child runs the shapes of one model, engine and precision. If it dies, the next child goes on with the shape after.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.candidates import accelerated, network
from benchmarks.photographs import calibration_images
from benchmarks.process import Child, ChildError, LeftOut
from benchmarks.rows import OURS, Row
from hardnet.engines.timing import settle

SHAPES = [(batch, side) for batch in range(1, 9) for side in range(32, 257, 32)]
"""Images per batch, height and width."""
TOLERANCES = {"fp32": 1e-4, "bf16": 1.25, "int8": 0.5}
"""Norm of the difference from eager mode's logits over their norm; in bf16 over that of eager mode's own difference."""
TIMEOUT = 600.0
"""Seconds to wait for one shape."""


class Comparison:
    """One of our models in eager mode and in an engine, for a process of its own."""

    def __init__(self, model: str, engine: str, precision: str, photographs: Path | None) -> None:
        self._eager = network(Row(OURS, model, "eager", "fp32", 1, 224, 224))
        settle(self._eager, 224, 224)
        self._eager.eval()
        self._half = copy.deepcopy(self._eager).to(torch.bfloat16) if precision == "bf16" else None
        self._parts = torch.cat(calibration_images(photographs))
        self._named, self._photographs = (OURS, model, engine, precision), photographs
        self._fast: nn.Module | None = None

    def deviation(self, batch: int, side: int) -> float | str:
        """Return the deviation for one shape, see :data:`TOLERANCES`, or why the engine refused it.

        Raises:
            ImportError, NotImplementedError: see :func:`benchmarks.candidates.build`.
        """
        images = functional.interpolate(self._parts[:batch], (side, side), mode="bilinear", antialias=True)
        row = Row(*self._named, batch, side, side)
        try:
            if self._fast is None or row.engine == "torch":  # its graphs are compiled for one shape
                self._fast = accelerated(self._eager, row, images, None, self._photographs)
            with torch.inference_mode():
                wanted = self._eager(images)
                scale = wanted if self._half is None else self._half(images.to(torch.bfloat16)) - wanted
                return float((self._fast(images) - wanted).norm() / scale.norm())
        except NotImplementedError:
            raise
        except (RuntimeError, ValueError) as error:
            return f"{batch} x {side}: {error}"


def sweep_one(model: str, engine: str, precision: str, photographs: Path | None = None) -> dict[str, Any]:
    """Return the number of shapes, those that crashed or were refused, and the deviations, ready for JSON.

    Raises:
        ChildError: eager mode failed.
    """
    row: dict[str, Any] = {"model": model, "engine": engine, "precision": precision, "shapes": len(SHAPES)}
    crashes: list[str] = []
    refused: list[str] = []
    deviations: list[float] = []
    child: Child | None = None
    try:
        for batch, side in SHAPES:
            child = child or Child(Comparison, (model, engine, precision, photographs), TIMEOUT)
            try:
                answer = child.ask("deviation", batch, side, timeout=TIMEOUT)
            except LeftOut as error:
                return row | {"left_out": str(error)}
            except ChildError as error:
                crashes.append(f"{batch} x {side}: {error}")
                child.close()
                child = None
            else:
                (refused if isinstance(answer, str) else deviations).append(answer)
    finally:
        if child is not None:
            child.close()
    return row | {
        "crashes": crashes,
        "refused": refused,
        "tolerance": TOLERANCES[precision],
        "outside_tolerance": sum(not deviation <= TOLERANCES[precision] for deviation in deviations),  # NaN counts
        "largest_deviation": float(f"{max(filter(math.isfinite, deviations), default=0.0):.3g}"),
    }
