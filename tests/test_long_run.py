"""Many images, many loads, many threads, and a fork in between: nothing is held on to, no answer changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pictures import IMAGES, one_torch_thread

import hardnet
from hardnet import Classifier
from tools.soak import ALLOWED_GROWTH, MEBIBYTE, Sample, growth

ROOT = Path(hardnet.__file__).parents[1]


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier("hardnet39ds", weights="FASHION_MNIST", device="cpu")


def answers(classifier: Classifier) -> list[tuple[str, float]]:
    results = classifier.predict(IMAGES / "fashion_mnist", topk=1, batch_size=7)
    return [(result.top.label, result.top.probability) for result in results]


def test_eight_threads_give_the_answers_of_one(classifier: Classifier) -> None:
    expected, found = answers(classifier), []
    threads = [threading.Thread(target=lambda: found.append(answers(classifier))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert found == [expected] * 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX alone has fork")
def test_a_fork_after_use_works(classifier: Classifier) -> None:
    """With one thread of torch; its pool of several does not survive a fork, and torch says so itself."""
    expected = answers(classifier)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if answers(classifier) == expected else 1)
    deadline = time.monotonic() + 300
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail("the forked process hangs")
        time.sleep(0.02)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    assert answers(classifier) == expected


def test_growth_is_noticed() -> None:
    flat = [Sample(n, 500 * MEBIBYTE + n % 3 * MEBIBYTE, 6, 3) for n in range(40)]
    assert growth(flat) == []
    assert growth([Sample(s.done, s.resident + s.done * ALLOWED_GROWTH // 20, 6, 3) for s in flat]) != []
    assert growth([Sample(s.done, s.resident, 6 + s.done // 39, 3) for s in flat]) == ["descriptors grew from 6 to 7"]
    assert growth([Sample(s.done, s.resident, 6, 3 + s.done // 39) for s in flat]) == ["threads grew from 3 to 4"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the tool reads /proc")
def test_thousands_of_images_and_many_loads() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tools.soak", "--images", "4000", "--loads", "40"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "4000 images" in done.stdout
    assert "80 refused" in done.stdout
    assert done.stdout.rstrip().endswith("nothing has grown")


@pytest.mark.parametrize(
    "strange",
    [
        lambda x: x.flip(-1).flip(-1),
        lambda x: x.repeat(1, 1, 2)[:, :, ::2].permute(0, 2, 1).contiguous().permute(0, 2, 1),
        lambda x: x.to(memory_format=torch.contiguous_format).clone().requires_grad_(),
        lambda x: x.double(),
        lambda x: torch.nn.functional.pad(x, (9, 9, 9, 9))[:, 9:-9, 9:-9],
    ],
    ids=["flipped twice", "not contiguous", "requires grad", "float64", "a view"],
)
def test_tensors_laid_out_otherwise(classifier: Classifier, strange: object) -> None:
    tensor = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    tensor = tensor.repeat_interleave(1, 2)
    expected = classifier.predict(tensor)[0].top
    changed = strange(tensor)  # type: ignore[operator]
    found = classifier.predict(changed)[0].top
    same = changed.detach().float()
    assert found.probability == pytest.approx(classifier.predict(same)[0].top.probability, rel=1e-4)
    if torch.equal(same, tensor):
        assert (found.label, found.probability) == (expected.label, pytest.approx(expected.probability, rel=1e-4))


def test_tensors_without_values_or_of_other_layouts(classifier: Classifier) -> None:
    for strange in (
        torch.empty(3, 64, 64, device="meta"),
        torch.zeros(3, 64, 64).to_sparse(),
        torch.zeros(3, 64, 64, dtype=torch.complex64),
        torch.zeros(3, 64, 64, dtype=torch.bool),
        torch.zeros(3, 64, 64).to(torch.float8_e4m3fn),
        torch.zeros(1, dtype=torch.uint8).expand(3, 100_000, 100_000),
        torch.zeros(1).expand(3, 100_000, 100_000),
        torch.empty(3, 100_000, 100_000, device="meta", dtype=torch.uint8),
    ):
        first, second = classifier.predict([strange, torch.zeros(3, 64, 64)])
        assert first.error is not None, strange.dtype
        assert first.error.startswith("<tensor 0>: ")
        assert "\n" not in first.error
        assert second.error is None
    [sparse] = classifier.predict([torch.zeros(1, 3, 64, 64).to_sparse()])
    assert "an image tensor has the shape" in str(sparse.error)
