"""What the library costs before it does anything, in ratios: see benchmarks/import_time.py for the figures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pictures import one_torch_thread

from benchmarks.import_time import construction_seconds, import_seconds
from hardnet.models.layers import ConvLayer


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


def test_import_adds_little_to_that_of_torch() -> None:
    torch_seconds, ours = import_seconds(2)
    assert ours < 0.25 * torch_seconds


def test_building_costs_what_it_costs_elsewhere() -> None:
    """The bound is 1.3 times pytorchcv's time; a machine that is disturbed all along gets further tries."""
    ratios = []
    for _ in range(5):
        ours, theirs = construction_seconds("hardnet85", 5)
        ratios.append(ours / theirs)
        if ratios[-1] <= 1.3:
            return
    pytest.fail(f"building hardnet85 takes {min(ratios):.2f} times as long as pytorchcv's, at best")


def test_weights_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the time is made of: no number is drawn that is not used."""
    drawn: list[int] = []
    for name in ("uniform_", "normal_"):
        original = getattr(torch.Tensor, name)

        def count(tensor: torch.Tensor, *rest: object, _original: object = original, **keywords: object) -> object:
            if tensor.device.type != "meta":
                drawn.append(tensor.numel())
            return _original(tensor, *rest, **keywords)  # type: ignore[operator]

        monkeypatch.setattr(torch.Tensor, name, count)
    layer = ConvLayer(8, 16)
    assert drawn == [layer.conv.weight.numel()]
