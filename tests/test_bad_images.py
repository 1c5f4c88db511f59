"""`hardnet predict` over a folder of strangers' pictures: each file classified or named once, and nothing else said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bad_images import Corpus, make_corpus

import hardnet
from hardnet.utils.text import printable

pytestmark = pytest.mark.skipif(os.name != "posix", reason="FIFOs, devices and odd names are POSIX features")

MEMORY = 3 << 30
"""Bytes of address space beyond what torch itself reserves; the large bomb alone would take 3.6 GB in RGB."""
PROGRAM = """
import resource, sys, threading, torch, hardnet.cli, hardnet.inference
torch.set_num_threads(1)
size = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]),) * 2)
sys.exit(hardnet.cli.main(sys.argv[2:]))
"""


def predict(*paths: object) -> subprocess.CompletedProcess[bytes]:
    arguments = [str(MEMORY), "predict", *(os.fsencode(str(path)) for path in paths), "--format", "json", "--topk", "1"]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(hardnet.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=600,
    )


def check(corpus: Corpus, extra: tuple[str, ...] = ()) -> dict[str, int]:
    """Run the command over the corpus and check every promise; return the counts."""
    done = predict(corpus.folder, *extra)
    said = done.stderr.decode("utf-8", "replace")
    assert done.returncode == 1, said[-3000:]
    assert "Traceback" not in said
    results = json.loads(done.stdout)
    assert len(results) == corpus.total + len(extra)
    errors = {entry["source"]: entry["error"] for entry in results if "error" in entry}
    fine = {entry["source"] for entry in results if entry.get("predictions")}
    assert len(errors) + len(fine) == len(results)  # nothing twice, nothing neither
    names = {str(path) for path in (*corpus.good, *corpus.bad, *corpus.either)} | set(extra)
    assert errors.keys() | fine == names
    assert [str(path) for path in corpus.good if str(path) in errors] == []
    assert [str(path) for path in (*corpus.bad, *extra) if str(path) not in errors] == []
    lines = [line.removeprefix("hardnet: ") for line in said.splitlines() if line.startswith("hardnet: ")]
    for source, error in errors.items():
        assert error.startswith(f"{printable(source)}: ")
        assert len(error) > len(printable(source)) + 10  # a reason
        assert lines.count(shown(error)) == 1
    assert f"{len(errors)} of {len(results)} images could not be classified" in lines[-1]
    return {"good": len(corpus.good), "bad": len(corpus.bad), "either": len(corpus.either), "refused": len(errors)}


def shown(error: str) -> str:
    """As it comes through standard error."""
    return error.encode("utf-8", "backslashreplace").decode("utf-8", "replace")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory is bounded by way of /proc")
@pytest.mark.filterwarnings("ignore:Saving I mode images")
@pytest.mark.parametrize(("cuts", "flips"), [(100, 150), pytest.param(1000, 4000, marks=pytest.mark.slow)])
def test_predict_over_the_whole_corpus(tmp_path: Path, cuts: int, flips: int) -> None:
    (tmp_path / "corpus").mkdir()
    corpus = make_corpus(tmp_path / "corpus", cuts, flips)
    extra = ("https://example.org/cat.jpg", str(tmp_path / "gone.png"), "/dev/null")
    counts = check(corpus, extra)
    print(counts)
    assert counts["good"] > 100
    assert counts["refused"] > counts["bad"] + cuts // 2
