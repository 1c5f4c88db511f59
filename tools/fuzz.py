"""Fuzz the library with atheris, guided by coverage.

    pip install atheris
    python -m tools.fuzz --seconds 720 --work /tmp/fuzz              # all targets, one after the other
    python -m tools.fuzz --seconds 60 --work /tmp/fuzz archive       # or some
    python -m tools.fuzz --work /tmp/fuzz --pack tests/corpus        # what was found, into the tests

Each target runs in a process of its own, begins with its seeds and the committed corpus, and goes on after a crash.
Writes WORK/TARGET/corpus, WORK/TARGET/crashes and WORK/report.json, and prints a line per target.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = ("archive", "keys", "checkpoint", "image", "cli")
INSTRUMENTED = ["hardnet", "zipfile", "PIL", "safetensors", "torch._weights_only_unpickler", "torch.serialization"]
LONGEST = {"image": 4096, "checkpoint": 16384}
"""Bytes; 4096 for the others as well."""
_CHILD = "--run-target"
PACKED_BYTES, PACKED_COUNT = 1024, 200
"""The largest input that goes into the tests, and how many of a target do."""


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=int, default=60, help="per target (default: %(default)s)")
    parser.add_argument("--work", type=Path, required=True, help="folder for the corpus, the crashes and the report")
    parser.add_argument("--pack", type=Path, help="write the corpus of --work to this folder and fuzz nothing")
    if sys.argv[1:2] == [_CHILD]:
        _fuzz(sys.argv[2], sys.argv[3:])
    arguments = parser.parse_args()
    for target in arguments.targets or NAMES:
        if arguments.pack is not None:
            _pack(target, arguments.work / target, arguments.pack)
        else:
            _run(target, arguments.seconds, arguments.work)


def _fuzz(target: str, options: list[str]) -> None:
    """Run libFuzzer in this process, which it ends."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        import torch

        from tools.fuzz_targets import TARGETS

    torch.set_num_threads(1)
    atheris.Setup([sys.argv[0], *options], TARGETS[target])
    atheris.Fuzz()


def _run(target: str, seconds: int, work: Path) -> None:
    corpus, crashes = work / target / "corpus", work / target / "crashes"
    for folder in (corpus, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    for content in _beginnings(target):
        (corpus / hashlib.sha1(content, usedforsecurity=False).hexdigest()).write_bytes(content)
    total = {"target": target, "seconds": 0.0, "executions": 0, "coverage": 0, "peak_rss_mb": 0, "slowest_s": 0}
    spent = 0.0  # on fuzzing: starting the process is not counted, unless it ends in a crash
    for number in range(1, 50):
        if seconds - spent < 5:
            break
        log, start = work / target / f"log-{number}.txt", time.monotonic()
        _run_once(target, int(seconds - spent), corpus, crashes, log)
        text = log.read_text(errors="replace")
        done = re.search(r"^Done \d+ runs in (\d+) second", text, re.MULTILINE)
        spent += float(done[1]) if done else time.monotonic() - start
        _add(total, text)
    total["seconds"] = round(spent)
    total["inputs"] = len(list(corpus.iterdir()))
    total["crashes"] = sum(not path.name.startswith("slow-unit") for path in crashes.iterdir())
    print(json.dumps(total), flush=True)
    report = work / "report.json"
    before = json.loads(report.read_text()) if report.exists() else {}
    report.write_text(json.dumps({**before, target: total}, indent=1))


def _run_once(target: str, seconds: int, corpus: Path, crashes: Path, log: Path) -> None:
    command = [
        sys.executable, "-m", "tools.fuzz", _CHILD, target, str(corpus),
        f"-max_total_time={seconds}", f"-artifact_prefix={crashes}/", "-print_final_stats=1", "-timeout=30",
        "-rss_limit_mb=6000", f"-max_len={LONGEST.get(target, 4096)}",
    ]  # fmt: skip
    with log.open("wb") as file:
        subprocess.run(  # noqa: S603
            command, cwd=ROOT, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )


def _beginnings(target: str) -> list[bytes]:
    from tools.fuzz_seeds import SEEDS

    return [*SEEDS[target](), *read_corpus(target)]


def read_corpus(target: str) -> list[bytes]:
    """Return the committed inputs of a target."""
    path = ROOT / "tests" / "corpus" / f"{target}.txt"
    return [base64.b64decode(line) for line in path.read_text().splitlines()] if path.exists() else []


def _add(total: dict[str, object], log: str) -> None:
    def last(pattern: str) -> int:
        return max(map(int, re.findall(pattern, log)), default=0)

    total["executions"] = int(str(total["executions"])) + (
        last(r"number_of_executed_units: (\d+)") or last(r"#(\d+)\t")
    )
    for name, pattern in (
        ("coverage", r" cov: (\d+)"),
        ("peak_rss_mb", r"(?:peak_rss_mb:|rss:) *(\d+)"),
        ("slowest_s", r"slowest_unit_time_sec: (\d+)"),
    ):
        total[name] = max(int(str(total[name])), last(pattern))


def _pack(target: str, work: Path, folder: Path) -> None:
    """Keep every crash and the smallest inputs of the corpus, of which each once reached something new."""
    crashes = [path.read_bytes() for path in (work / "crashes").iterdir()]
    small = sorted((path.read_bytes() for path in (work / "corpus").iterdir()), key=lambda found: (len(found), found))
    kept = {*crashes, *read_corpus(target), *(found for found in small[:PACKED_COUNT] if len(found) <= PACKED_BYTES)}
    lines = sorted((base64.b64encode(content).decode() for content in kept), key=lambda line: (len(line), line))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{target}.txt").write_text("".join(line + "\n" for line in lines))
    print(f"{target}: {len(lines)} inputs")


if __name__ == "__main__":
    main()
