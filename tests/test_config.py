"""The harmonic rule against the paper's figures, worked out by hand, and the rows against the built networks."""

from __future__ import annotations

import dataclasses

import pytest

from hardnet.models.config import (
    CONFIGS,
    HarDNetConfig,
    harmonic_links,
    head_index,
    kept_layers,
    layer_width,
    stage_indices,
)
from hardnet.models.layers import ConvLayer, DWConvLayer, HarDBlock
from hardnet.models.network import HarDNet

# Figure 1 of the paper, read off by hand: each layer's inputs, nearest first.
LINKS = {
    1: (0,),
    2: (1, 0),
    3: (2,),
    4: (3, 2, 0),
    5: (4,),
    6: (5, 4),
    7: (6,),
    8: (7, 6, 4, 0),
    12: (11, 10, 8),
    16: (15, 14, 12, 8, 0),
}


@pytest.mark.parametrize(("layer", "links"), LINKS.items())
def test_links_follow_the_harmonic_pattern(layer: int, links: tuple[int, ...]) -> None:
    assert harmonic_links(layer) == links


def test_every_link_is_a_power_of_two_that_divides_the_layer() -> None:
    for layer in range(1, 200):
        expected = [layer - step for step in (1, 2, 4, 8, 16, 32, 64, 128) if layer % step == 0]
        assert list(harmonic_links(layer)) == expected


def test_widths_by_hand() -> None:
    # k = 16, m = 1.6: 16; 16 * 1.6 = 25.6 -> 26; 25.6 * 1.6 = 40.96 -> 41 -> 40
    assert [layer_width(n, 16, 1.6) for n in (1, 2, 3, 4)] == [16, 26, 16, 40]
    # k = 14, m = 1.7: 14; 23.8 -> 24; 40.46 -> 41 -> 40; 68.782 -> 69 -> 68
    assert [layer_width(n, 14, 1.7) for n in range(1, 9)] == [14, 24, 14, 40, 14, 24, 14, 68]
    # five links: 20 * 1.6**4 = 131.072 -> 132
    assert layer_width(16, 20, 1.6) == 132


def test_widths_are_even() -> None:
    assert all(layer_width(n, k, m) % 2 == 0 for n in range(1, 33) for k in (13, 14, 16) for m in (1.5, 1.6, 1.7))


def test_kept_layers_are_the_odd_ones_and_the_last() -> None:
    assert kept_layers(4) == (1, 3, 4)
    assert kept_layers(8) == (1, 3, 5, 7, 8)
    assert kept_layers(5) == (1, 3, 5)
    assert kept_layers(1) == (1,)


def test_block_output_by_hand() -> None:
    # hardnet68's first block: 14 for each of layers 1, 3, 5, 7 and 68 for layer 8
    assert HarDBlock(64, 14, 1.7, 8).out_channels == 4 * 14 + 68


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="from 1, got 0"):
        harmonic_links(0)
    with pytest.raises(ValueError, match="at least one layer, got 0"):
        kept_layers(0)
    row = CONFIGS["hardnet68"]
    with pytest.raises(ValueError, match="differ in length"):
        dataclasses.replace(row, growth_rates=row.growth_rates[:-1])


def test_rows_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIGS["hardnet68"].drop_rate = 0.5  # type: ignore[misc]  # that it cannot be assigned is the point


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_indices_point_at_the_right_modules(config: HarDNetConfig) -> None:
    base = HarDNet(config).base
    assert head_index(config) == len(base) - 1 == {"hardnet39ds": 14, "hardnet85": 19}.get(config.name, 16)
    stages = stage_indices(config)
    assert [i for i, module in enumerate(base) if isinstance(module, HarDBlock)] == [s.block for s in stages]
    for stage, downsample in zip(stages, config.downsample, strict=True):
        assert isinstance(base[stage.transition], ConvLayer)
        assert (stage.downsample is not None) == downsample
        if stage.downsample is not None:
            assert isinstance(base[stage.downsample], DWConvLayer) == config.depthwise
