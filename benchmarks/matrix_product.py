"""The floor under every row: how fast this machine multiplies float32 matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

SIZES = (1024, 1536, 2048)
CUDA_SIZES = (2048, 4096, 8192)
"""Sides of the square matrices that are tried."""
_TRIES = 4


@dataclass(frozen=True)
class Product:
    """One way to multiply square matrices, and how fast it was when it was tried."""

    how: str
    """``mm`` is torch's matrix product, ``convolution`` the same product as a 1x1 convolution (oneDNN on a CPU)."""
    side: int
    step: Callable[[], object]
    seconds: float

    @property
    def operations(self) -> int:
        """Floating-point operations of one product: two per multiply-accumulate."""
        return 2 * self.side**3


def fastest_product(device: str, sizes: tuple[int, ...] | None = None) -> tuple[Product, dict[str, float]]:
    """Try sizes and libraries, and return the fastest product and the best rate of each way in GFLOP/s."""
    if sizes is None:
        sizes = CUDA_SIZES if torch.device(device).type == "cuda" else SIZES
    products = [_tried(how, side, device) for side in sizes for how in ("mm", "convolution")]
    products.sort(key=lambda product: product.operations / product.seconds)
    rates = {product.how: round(product.operations / product.seconds / 1e9, 1) for product in products}
    return products[-1], rates


def _tried(how: str, side: int, device: str) -> Product:
    step = _mm(side, device) if how == "mm" else _convolution(side, device)
    times = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return Product(how, side, step, min(times))


def _mm(side: int, device: str) -> Callable[[], object]:
    first, second, product = (torch.randn(side, side, device=device) for _ in range(3))

    def step() -> None:
        with torch.inference_mode():
            torch.mm(first, second, out=product)
        _finish(device)

    return step


def _convolution(side: int, device: str) -> Callable[[], object]:
    # side pixels of side channels, to side channels: the product of two square matrices.
    height = next(n for n in range(int(side**0.5), 0, -1) if side % n == 0)
    pixels = torch.randn(1, side, height, side // height, device=device).to(memory_format=torch.channels_last)
    kernel = torch.randn(side, side, 1, 1, device=device).to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.inference_mode():
            functional.conv2d(pixels, kernel)
        _finish(device)

    return step


def _finish(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
