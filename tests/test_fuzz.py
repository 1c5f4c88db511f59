"""What fuzzing found, and seeded mutations of it: the targets of tools/fuzz.py keep their promises without a fuzzer."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from pictures import one_torch_thread

from tools.fuzz import NAMES, ROOT, read_corpus
from tools.fuzz_seeds import SEEDS
from tools.fuzz_targets import TARGETS

MUTATIONS = {"archive": 500, "keys": 300, "checkpoint": 300, "image": 500}
"""How many per target; a command line takes too long for them."""
COMMAND_LINES = 40
REPLAY = """
import sys, torch
from tools.fuzz import read_corpus
from tools.fuzz_seeds import SEEDS
from tools.fuzz_targets import TARGETS
torch.set_num_threads(1)
inputs = [*SEEDS[sys.argv[1]](), *read_corpus(sys.argv[1])][:int(sys.argv[2])]
for content in inputs:
    TARGETS[sys.argv[1]](content)
print(len(inputs))
"""


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


def mutated(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(rng.randint(1, 5)):
        position = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                changed[position] = rng.randrange(256)
            case 1:
                changed[position] ^= 1 << rng.randrange(8)
            case 2:
                changed[position:position] = changed[position : position + rng.randint(1, 8)]
            case _ if len(changed) > 1:
                del changed[position]
    return bytes(changed)


def test_the_corpus_is_there() -> None:
    assert set(NAMES) == set(TARGETS) == set(SEEDS)
    for name in NAMES:
        assert len(read_corpus(name)) >= 20


@pytest.mark.parametrize("target", MUTATIONS)
def test_what_was_found_and_what_lies_near(target: str) -> None:
    rng = random.Random(target)  # noqa: S311  test data
    inputs = [*SEEDS[target](), *read_corpus(target)]
    for content in inputs:
        TARGETS[target](content)
    for _ in range(MUTATIONS[target]):
        TARGETS[target](mutated(rng.choice(inputs), rng))


def replay(target: str, count: int, timeout: float) -> int:
    """Run inputs in a process of their own: the command line changes what belongs to the process."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REPLAY, target, str(count)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout)


def test_command_lines() -> None:
    assert replay("cli", COMMAND_LINES, 300) == COMMAND_LINES


@pytest.mark.slow
def test_all_command_lines() -> None:
    assert replay("cli", 10_000, 900) == len(SEEDS["cli"]()) + len(read_corpus("cli"))


def uncut(line: str, part: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process where one part of the library is not cut off."""
    module, name = part.rsplit(".", 1)
    program = f"""
import importlib, torch
from tools import fuzz_command_line as fuzzing
torch.set_num_threads(1)
module = importlib.import_module({module!r})
whole = module.{name}
fuzzing._sandbox()
module.{name} = whole
fuzzing.cli(bytes(fuzzing.WORDS.index(word) for word in {line.split()!r}))
"""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("line", "part", "event"),
    [
        ("demo --host 127.0.0.1 --port 0", "hardnet.demo._listen", "socket.bind"),
        ("benchmark hardnet39ds --no-peers --engines eager", "hardnet.benchmark.cli.measure", "subprocess.Popen"),
    ],
)
def test_a_command_that_would_start_something_is_cut_short(line: str, part: str, event: str) -> None:
    done = uncut(line, "tools.fuzz_command_line.Cut")  # nothing is left whole
    assert done.returncode == 0, done.stderr
    done = uncut(line, part)
    assert done.returncode == -signal.SIGABRT, done.stderr
    assert event in done.stderr


def test_a_number_beyond_64_bits_is_no_size(capsys: pytest.CaptureFixture[str]) -> None:
    import hardnet.cli

    with pytest.raises(SystemExit):
        hardnet.cli.main(["info", "--size", "9" * 19])
    assert "H or HxW in pixels is wanted" in capsys.readouterr().err


def test_a_size_that_no_memory_holds_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import hardnet.cli

    arguments = ["export", "hardnet39ds", "--weights", "FASHION_MNIST", "--size"]
    assert hardnet.cli.main([*arguments, "999999"]) == 2
    assert capsys.readouterr().err == "hardnet: the size may be 89,478,485 pixels at most, got 999999x999999\n"


def test_a_broken_promise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import tools.fuzz_targets

    monkeypatch.setattr(tools.fuzz_targets, "unpack_archive", lambda *_, **__: bytes(2 << 20))
    with pytest.raises(AssertionError, match="outgrew the limit"):
        TARGETS["archive"](b"")
