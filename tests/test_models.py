"""The networks against golden vectors of the original implementation, the harmonic rule, and the indices of modules."""

import copy
import dataclasses
import functools
import json
import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import GOLDEN, MODELS, SAMPLES, golden_input, golden_state, small_model
from torch import Tensor, nn
from torch.nn import functional

from hardnet import HarDNet, create_model
from hardnet.models.config import (
    CONFIGS,
    HarDNetConfig,
    feature_levels,
    harmonic_links,
    head_index,
    kept_layers,
    layer_width,
    stage_indices,
)
from hardnet.models.layers import ConvLayer, DWConvLayer, HarDBlock

INPUTS = {"square": (1, (2, 3, 224, 224)), "wide": (2, (1, 3, 256, 320))}
STORED = 2**-23
"""Relative rounding of the stored float32 numbers."""


@functools.cache
def golden_model(name: str) -> HarDNet:
    model = create_model(name)
    model.load_state_dict(golden_state(name), strict=True)
    return model.eval()


def filled(name: str, dtype: torch.dtype = torch.float32) -> HarDNet:
    return copy.deepcopy(golden_model(name)).to(dtype)


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as archive:
        return dict(archive)


def assert_close(got: Tensor | np.ndarray, want: np.ndarray, tolerance: float) -> None:
    """Compare relative to the largest magnitude."""
    got = np.asarray(got.detach().cpu() if isinstance(got, Tensor) else got, dtype=np.float64)
    assert got.shape == want.shape
    scale = np.abs(want).max()
    assert np.abs(got - want).max() <= tolerance * scale


def summary(x: Tensor) -> np.ndarray:
    """Mean, population deviation, largest magnitude, and 32 values spread over the flattened tensor."""
    flat = x.detach().cpu().double().flatten().numpy()
    picked = flat[np.linspace(0, flat.size - 1, 32).astype(np.int64)]
    return np.concatenate([[flat.mean(), flat.std(), np.abs(flat).max()], picked])


def test_state_dict_is_the_originals(name: str) -> None:
    want = json.loads((GOLDEN / f"{name}.keys.json").read_text())
    with torch.device("meta"):
        model = create_model(name)
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == want


@pytest.mark.parametrize(
    ("dtype", "logits_tolerance", "taps_tolerance"),
    [(torch.float32, 2e-5, 5e-4), (torch.float64, 2 * STORED, 2 * STORED)],
    ids=["float32", "float64"],
)
@pytest.mark.parametrize("which", INPUTS)
def test_evaluation_equals_the_original(
    name: str, which: str, dtype: torch.dtype, logits_tolerance: float, taps_tolerance: float, device: str
) -> None:
    model = filled(name, dtype).to(device)
    x = golden_input(*INPUTS[which]).to(device, dtype)
    features = {}
    hooks = [
        model.base[index].register_forward_hook(lambda _m, _i, out, index=index: features.update({index: out.clone()}))
        for *_, index in feature_levels(CONFIGS[name])
    ]
    with torch.inference_mode():
        logits = model(x)
    for hook in hooks:
        hook.remove()
    assert_close(logits, golden(name)[f"{which}/logits"], logits_tolerance)
    stored = {key for key in golden(name) if key.startswith(f"{which}/base")}
    assert stored == {f"{which}/base{index}/{what}" for index in features for what in ("shape", "summary")}
    for index, feature in features.items():
        assert list(feature.shape) == list(golden(name)[f"{which}/base{index}/shape"])
        want = golden(name)[f"{which}/base{index}/summary"]
        assert_close(summary(feature), want, taps_tolerance)


def test_training_step_equals_the_original(name: str) -> None:
    model = filled(name, torch.float64).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    logits = model(golden_input(1001, (4, 3, 64, 96)).double())
    loss = functional.cross_entropy(logits, torch.tensor([0, 999, 7, 500]))
    loss.backward()
    assert_close(logits, golden(name)["train/logits"], 2 * STORED)
    assert_close(loss, golden(name)["train/loss"], 2 * STORED)
    norms = np.array([parameter.grad.norm().item() for parameter in model.parameters()])
    # A few are zero in exact arithmetic and come out as rounding noise, far below the largest.
    assert np.allclose(norms, golden(name)["train/grad_norms"], rtol=1e-6, atol=1e-9 * norms.max())
    for kind in ("mean", "var"):
        got = [value.norm().item() for key, value in model.state_dict().items() if key.endswith(f"running_{kind}")]
        assert np.allclose(got, golden(name)[f"train/running_{kind}_norms"], rtol=2 * STORED, atol=0)


def higher_ceiling(model: HarDNet) -> None:
    next(module for module in model.modules() if isinstance(module, nn.ReLU6)).max_val = 6.5


def other_order_of_links(model: HarDNet) -> None:
    model.base[3].links[1].reverse()


def other_order_of_outputs(model: HarDNet) -> None:
    indices = model.base[-3 if model.config.last_block_drop_rate is None else -4].kept
    indices[0], indices[1] = indices[1], indices[0]


@pytest.mark.parametrize("mistake", [higher_ceiling, other_order_of_links, other_order_of_outputs])
def test_one_mistake_is_noticed(name: str, mistake: Callable[[HarDNet], None]) -> None:
    """The comparisons with the golden vectors can fail."""
    model = filled(name)
    mistake(model)
    with torch.inference_mode():
        wrong = model(golden_input(*INPUTS["wide"]))
    want = golden(name)["wide/logits"]
    assert np.abs(wrong.numpy() - want).max() > 2e-5 * np.abs(want).max()


@pytest.mark.parametrize("shape", [(2, 32, 32), (2, 33, 47), (1, 97, 224), (0, 64, 64)])
def test_any_size_from_32_up_and_an_empty_batch(name: str, shape: tuple[int, int, int]) -> None:
    batch, height, width = shape
    with torch.inference_mode():
        assert small_model(name)(torch.zeros(batch, 3, height, width)).shape == (batch, 10)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 31, 64), r"at least 32 pixels, got \(1, 3, 31, 64\)"),
        (torch.zeros(1, 1, 64, 64), r"\(N, 3, H, W\).*got \(1, 1, 64, 64\)"),
        (torch.zeros(3, 64, 64), r"got \(3, 64, 64\).*unsqueeze"),
        (torch.zeros(1, 64, 64, 3), r"got \(1, 64, 64, 3\).*permute"),
        (torch.zeros(7), r"got \(7,\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"floating-point images, got torch\.uint8"),
        (np.zeros((64, 64, 3), np.uint8), r"got ndarray: hardnet\.Classifier takes NumPy arrays"),
    ],
)
def test_a_wrong_input_is_named(images: Tensor, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        small_model()(images)


def test_initialisation_is_xavier_normal_with_zero_biases() -> None:
    torch.manual_seed(0)
    model = create_model("hardnet68")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
            deviation = (2 / (fan_in + fan_out)) ** 0.5
            samples = module.weight.numel()
            assert abs(module.weight.std().item() / deviation - 1) < 5 / samples**0.5
            outliers = (module.weight.abs() > 3 * deviation).float().mean().item()
            assert samples < 5000 or 0 < outliers < 0.01  # a normal distribution, not a uniform one
        elif isinstance(module, nn.Linear):
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert not module.bias.any()
            assert torch.equal(module.weight, torch.ones_like(module.weight))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", SAMPLES)
def test_bfloat16(name: str, autocast: bool, device: str) -> None:
    dtype = torch.float32 if autocast else torch.bfloat16
    model = filled(name, dtype).to(device)
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=autocast):
        logits = model(golden_input(*INPUTS["square"]).to(device, dtype))
    assert logits.dtype == torch.bfloat16
    assert np.corrcoef(logits.float().cpu().flatten(), golden(name)["square/logits"].flatten())[0, 1] > 0.98


@pytest.mark.parametrize("name", SAMPLES)
def test_channels_last(name: str, device: str) -> None:
    model = filled(name).to(device, memory_format=torch.channels_last)
    x = golden_input(*INPUTS["square"]).to(device, memory_format=torch.channels_last)
    with torch.inference_mode():
        assert model.base[:4](x).is_contiguous(memory_format=torch.channels_last)
        assert_close(model(x), golden(name)["square/logits"], 2e-5)


def test_a_block_has_the_attributes_of_the_released_code() -> None:
    block = small_model().base[3]
    assert (block.in_channels, block.growth_rate, block.n_layers) == (48, 16, 4)
    assert block.grmul == block.growth_multiplier == 1.6


def test_base_is_sliced_as_users_do(name: str) -> None:
    model = filled(name)
    x = golden_input(5, (1, 3, 64, 64))
    with torch.inference_mode():
        by_loop = x
        for layer in model.base:
            by_loop = layer(by_loop)
        by_slices = nn.Sequential(*model.base[:2])(x)
        by_slices = model.base[2:-1](by_slices)
        assert torch.equal(by_loop, model(x))
        assert torch.equal(model.base[-1](by_slices), by_loop)
        assert model.base[len(model.base) - 1][3].in_features == model.num_features == by_slices.shape[1]


def test_dropout_is_the_rows_own_and_hardnet85_has_one_more() -> None:
    with torch.device("meta"):
        for name, config in CONFIGS.items():
            assert create_model(name).base[-1][2].p == config.drop_rate
        base = create_model("hardnet85", drop_rate=0.4).base
    assert isinstance(base[17], nn.Dropout)
    assert (base[17].p, base[19][2].p) == (0.1, 0.4)


def test_building_and_running_is_silent(
    name: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    threads = torch.get_num_threads()
    with caplog.at_level(logging.DEBUG):
        create_model(name)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert torch.get_num_threads() == threads


def test_the_harmonic_rule_by_hand() -> None:
    # Figure 1 of the paper: the inputs of layers 1 to 8, nearest first
    links = [(0,), (1, 0), (2,), (3, 2, 0), (4,), (5, 4), (6,), (7, 6, 4, 0)]
    assert [harmonic_links(n) for n in range(1, 9)] == links
    assert (harmonic_links(12), harmonic_links(16)) == ((11, 10, 8), (15, 14, 12, 8, 0))
    # k = 16, m = 1.6: 16; 16 * 1.6 = 25.6 -> 26; 25.6 * 1.6 = 40.96 -> 41 -> 40
    assert [layer_width(n, 16, 1.6) for n in (1, 2, 3, 4)] == [16, 26, 16, 40]
    # k = 14, m = 1.7: 14; 23.8 -> 24; 40.46 -> 41 -> 40; 68.782 -> 69 -> 68
    assert [layer_width(n, 14, 1.7) for n in range(1, 9)] == [14, 24, 14, 40, 14, 24, 14, 68]
    # five links: 20 * 1.6**4 = 131.072 -> 132
    assert layer_width(16, 20, 1.6) == 132
    assert [kept_layers(n) for n in (1, 4, 5, 8)] == [(1,), (1, 3, 4), (1, 3, 5), (1, 3, 5, 7, 8)]


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="from 1, got 0"):
        harmonic_links(0)
    row = CONFIGS["hardnet39ds"]
    with pytest.raises(ValueError, match="shorter"):
        HarDNet(dataclasses.replace(row, growth_rates=row.growth_rates[:-1]))


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
