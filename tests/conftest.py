"""What the tests share: devices, the golden vectors, and the deterministic fill that they were made with."""

import functools
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

# Runs are compared to the last bit, and small pictures take less time than torch's threads wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from http_server import ScriptedServer, running
from pictures import COLOURS, plain
from torch import Tensor, nn

from hardnet import Classifier, HarDNet, create_model
from hardnet.images.preprocess import Preprocessing
from hardnet.models.config import CONFIGS
from hardnet.weights import files, transfer

GOLDEN = Path(__file__).parent / "golden"
MODELS = ("hardnet39ds", "hardnet68ds", "hardnet68", "hardnet85")
SAMPLES = [MODELS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS[1:])]
"""The smallest for what takes long and depends on the layers, not on their number; slow: the others."""
Fill = Callable[[nn.Module], nn.Module]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def golden_value(key: str, shape: tuple[int, ...]) -> Tensor:
    """The value of one entry of the state dict: a pure function of its key."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if len(shape) == 4:
        value = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif len(shape) == 2:
        value = random.standard_normal(shape) * np.sqrt(1 / shape[1])
    elif key.endswith("norm.weight"):
        value = random.uniform(0.6, 1.4, shape)
    elif key.endswith("running_var"):
        value = random.uniform(0.5, 1.5, shape)
    elif key.endswith("running_mean"):
        value = 0.1 * random.standard_normal(shape)
    else:
        value = 0.3 * random.standard_normal(shape)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def golden_state(name: str) -> dict[str, Tensor]:
    """A state dict as the original implementation would have saved it."""
    return dict(_golden_state(name))


@functools.cache
def _golden_state(name: str) -> dict[str, Tensor]:
    entries = json.loads((GOLDEN / f"{name}.keys.json").read_text())
    return {key: golden_value(key, tuple(shape)) for key, shape in entries}


def golden_input(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def small_model(name: str = "hardnet39ds") -> HarDNet:
    """A model of ten classes with random weights, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model(name, num_classes=10).eval()


def same(result: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether shapes agree, and values within a tolerance relative to the largest."""
    if result.shape != expected.shape:
        return False
    return not len(expected) or bool((result - expected).abs().max() <= tolerance * expected.abs().max())


def random_images(*shape: int) -> Tensor:
    """Values from 0 to 1, the same in every call."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three classes, 12 training and 9 validation images, that no test changes."""
    from training_data import make_folder

    root = tmp_path_factory.mktemp("data")
    make_folder(root, images=4)
    make_folder(root, images=3, split="val")
    return root


@pytest.fixture
def clean_environment(
    _isolated: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An empty cache of the test's own, short downloads, and all log lines kept."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    caplog.set_level(logging.INFO, logger="hardnet")
    for name, value in {"TIMEOUT": 10.0, "ATTEMPTS": 2, "BACKOFF": 0.01, "MAX_BYTES": 1_000_000}.items():
        monkeypatch.setattr(transfer, name, value)
    monkeypatch.setattr(files, "MAX_BYTES", 1_000_000)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A server on loopback that does what the test tells it."""
    with running() as script:
        yield script


@pytest.fixture
def golden_fill() -> Fill:
    """Fill any module's state dict with the golden values of its keys."""

    def fill(model: nn.Module) -> nn.Module:
        state = model.state_dict()
        model.load_state_dict({key: golden_value(key, tuple(value.shape)) for key, value in state.items()})
        return model

    return fill


@pytest.fixture
def network(golden_fill: Callable[[nn.Module], nn.Module], device: str) -> Classifier:
    """A real network whose answers differ from picture to picture, on small pictures for the sake of time."""
    transform = Preprocessing(resize=72, crop=64)
    return Classifier(golden_fill(HarDNet(CONFIGS["hardnet39ds"], num_classes=10)), device=device, transform=transform)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty pictures, red, green, blue, red, ...; number 7 is broken."""
    for number in range(20):
        plain(list(COLOURS)[number % 3]).save(tmp_path / f"{number:02}.png")
    whole = (tmp_path / "07.png").read_bytes()
    (tmp_path / "07.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Without the user's cache and settings; random numbers do not depend on the tests that ran before.

    The command line directs the log to the standard error of its test, which is closed afterwards.
    """
    proxies = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    certificates = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    for name in (*proxies, *certificates, "HARDNET_MIRROR", "HARDNET_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch_home")))
    torch.manual_seed(0)
    logger = logging.getLogger("hardnet")
    handlers, level = logger.handlers, logger.level
    yield
    logger.handlers = handlers
    logger.setLevel(level)
