"""The costs of the networks, against torch's own counter and by hand."""

import re

import pytest
import torch
from conftest import MODELS
from torch.utils.flop_counter import FlopCounterMode

from hardnet import create_model
from hardnet.models.config import CONFIGS, HarDNetConfig
from hardnet.models.cost import measure_cost

# Counted on the original implementation with torch's FlopCounterMode.
PARAMS = {"hardnet39ds": 3488228, "hardnet68ds": 4180602, "hardnet68": 17565348, "hardnet85": 36670212}
MACS = {"hardnet39ds": 429471474, "hardnet68ds": 775281526, "hardnet68": 4246114304, "hardnet85": 9074081584}


@pytest.mark.parametrize("name", MODELS)
def test_totals_are_the_originals(name: str) -> None:
    total = measure_cost(CONFIGS[name]).total
    assert (total.params, total.macs) == (PARAMS[name], MACS[name])
    with torch.device("meta"):
        assert total.params == sum(parameter.numel() for parameter in create_model(name).parameters())
    assert total.layers == int(re.findall(r"\d+", name)[0])


@pytest.mark.parametrize("name", MODELS)
def test_multiply_accumulates_agree_with_torchs_counter(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=7, in_chans=1).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 1, 96, 160))
    cost = measure_cost(CONFIGS[name], height=96, width=160, num_classes=7, in_chans=1)
    assert cost.total.macs * 2 == counter.get_total_flops()


def test_a_small_network_by_hand() -> None:
    config = HarDNetConfig(
        "tiny", stem_channels=(4, 6), block_layers=(2,), growth_rates=(8,), growth_multiplier=1.5,
        transition_channels=(10,), downsample=(True,), depthwise=False, drop_rate=0.0,
    )  # fmt: skip
    cost = measure_cost(config, height=32, width=64, num_classes=5)
    stem, stage, head = cost.stages
    # 3x3 stride 2 to 4 x 16 x 32, 3x3 to 6 x 16 x 32, max pooling to 6 x 8 x 16
    assert stem.macs == 4 * 16 * 32 * 27 + 6 * 16 * 32 * 36
    assert stem.cio == 3 * 32 * 64 + 4 * 16 * 32 + 4 * 16 * 32 + 6 * 16 * 32
    # layer 1: 6 -> 8; layer 2: 8 + 6 -> 12 (8 * 1.5); transition: 8 + 12 -> 10
    pixels = 8 * 16
    assert stage.macs == pixels * (8 * 6 * 9 + 12 * 14 * 9 + 10 * 20)
    assert stage.cio == pixels * (6 + 8 + 14 + 12 + 20 + 10)
    assert stage.output_shape == (10, 4, 8)
    assert stage.params == 8 * 6 * 9 + 12 * 14 * 9 + 10 * 20 + 2 * (8 + 12 + 10)
    assert (head.macs, head.cio, head.params, head.output_shape) == (50, 0, 55, (5,))
    assert (stem.layers, stage.layers, head.layers) == (2, 3, 1)
    assert [s.modules for s in cost.stages] == ["base[0:3]", "base[3:6]", "base.6.3"]
