"""The command line: output, exit status, and errors without tracebacks."""

import csv
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
from published import publish
from training_data import make_folder

import hardnet
from hardnet.cli import main
from hardnet.engines import FORMATS
from hardnet.utils.progress import progress_bar
from hardnet.weights import download

REPO = Path(__file__).parent.parent
GARMENTS = REPO / "images" / "fashion_mnist"
PHOTOGRAPHS = sorted((REPO / "images").glob("*.jpg"))


PACKAGED = "--model hardnet39ds --weights FASHION_MNIST"


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(PHOTOGRAPHS[0]), "--topk", "3", *PACKAGED.split()]) == 0
    out, err = capsys.readouterr()
    source, *lines = out.split("\n")
    shares = [float(line.split("%")[0]) for line in lines[:3]]
    assert (source, shares, lines[3:], err) == (str(PHOTOGRAPHS[0]), sorted(shares, reverse=True), ["", ""], "")


def test_the_default_needs_no_network_and_gives_what_the_library_gives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    assert main(["predict", str(GARMENTS), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("hardnet: hardnet39ds FASHION_MNIST, ten kinds of garments")
    entries = json.loads(out)
    results = hardnet.Classifier("hardnet39ds", weights="FASHION_MNIST").predict(GARMENTS)
    assert len(entries) == len(results) == len(list(GARMENTS.iterdir()))
    for entry, result in zip(entries, results, strict=True):
        assert entry["source"] == result.source
        assert [p["index"] for p in entry["predictions"]] == [p.index for p in result.predictions]
        assert entry["predictions"][0]["probability"] == pytest.approx(result.top.probability, rel=1e-3)


def test_classes_below_the_threshold_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(GARMENTS), "--format", "jsonl", "--threshold", "0.3"]) == 0
    predictions = [json.loads(line)["predictions"] for line in capsys.readouterr().out.splitlines()]
    assert len(predictions) == len(list(GARMENTS.iterdir()))
    assert min(p["probability"] for p in chain(*predictions)) >= 0.3


@pytest.mark.parametrize("style", ["table", "json", "csv"])
def test_one_broken_file_is_named_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], style: str
) -> None:
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(PHOTOGRAPHS[0].read_bytes())
    (tmp_path / "b.jpg").write_bytes(b"not a picture")
    assert main(["predict", str(tmp_path), "--format", style]) == 1
    out, err = capsys.readouterr()
    assert "1 of 3 images could not be used" in err
    assert sum("b.jpg" in line for line in err.splitlines()) == 1
    if style == "json":
        assert ["error" in entry for entry in json.loads(out)] == [False, True, False]
    else:
        assert out.count("a.jpg") == out.count("c.jpg") > 0
    (tmp_path / "empty").mkdir()
    for unusable in ("empty", "b.jpg", "gone.jpg"):  # there is nothing to work on
        assert main(["predict", str(tmp_path / unusable), "--format", style]) == 2


@pytest.mark.slow
def test_names_are_written_as_their_bytes(tmp_path: Path) -> None:
    """In a process of its own, whose standard output is really encoded; one of them is the input list's."""
    names = [os.fsencode(tmp_path) + name for name in (b"/caf\xe9.png", b"/two\nlines.png")]
    for name in names:
        Path(os.fsdecode(name)).write_bytes(next(GARMENTS.iterdir()).read_bytes())
    command = [sys.executable, "-m", "hardnet", "predict", "-", str(tmp_path), "--format", "csv", "--topk", "1"]
    result = subprocess.run(command, cwd=REPO, input=names[0] + b"\n", capture_output=True)
    assert (result.returncode, len(result.stderr.splitlines())) == (0, 1)
    rows = csv.reader(io.StringIO(result.stdout.decode("utf-8", "surrogateescape"), newline=""))
    assert [os.fsencode(row[0]) for row in rows][1:] == [names[0], *names]


GARMENT = "GARMENTS/bag-00018.png"
TRAINED = r"3 classes, .*\n(.*\n)*(epoch .*\n)+best epoch, (.*\n)*the model: .*\nnext: hardnet predict .*\n"
ENGINES = {
    "fp32": ("eager", "torch", "onnxruntime", "openvino"),
    "bf16": ("torch", "openvino"),
    "int8 --calibration GARMENTS": ("onnxruntime", "openvino"),
}
RESULTS = {
    **{
        f"predict {GARMENT} {PACKAGED} --format csv --engine {engine} --precision {precision}": r"source,.*\n/.*\n"
        for precision, engines in ENGINES.items()
        for engine in engines
    },
    f"predict {GARMENT} {PACKAGED} --output x.csv": "",
    f"extract {GARMENT} {PACKAGED} --output x.npz": "",
    f"explain {GARMENT} {PACKAGED} --output x.png": r"\d+\.\d\d%  .*\n",
    **{f"export hardnet39ds --weights FASHION_MNIST --format {name}": r"hardnet39ds\..*\n" for name in FORMATS},
    "info hardnet68": r"hardnet68 for .*\n(.*\n)+",
    "weights list hardnet68": r"model .*\n(hardnet68 .*\n)+",
    "evaluate data --weights three --format json": r"\[(.|\n)*\]\n",
    f"train data --output run --epochs 2 --size 32 {PACKAGED}": TRAINED,
    f"finetune data --output run --epochs 2 --size 32 {PACKAGED}": TRAINED,
    "benchmark hardnet39ds --rounds 1 --turn-seconds 0.01 --size 32": r"model .*\n(hardnet39ds .*\n){4}",
}
"""Commands, and what they print on standard output."""


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "pattern"), RESULTS.items())
def test_only_results_are_on_standard_output_with_cold_caches(arguments: str, pattern: str, tmp_path: Path) -> None:
    """And only this library's messages are on standard error."""
    for split in ("train", "val"):
        make_folder(tmp_path / "data", images=2, split=split)
    labels = sorted(entry.name for entry in (tmp_path / "data" / "val").iterdir())
    hardnet.create_model("hardnet39ds", num_classes=3).save_pretrained(tmp_path / "three", labels=labels)
    environment = os.environ | {"TORCH_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(REPO), "HARDNET_OFFLINE": "1"}
    command = [sys.executable, "-m", "hardnet", *(a.replace("GARMENTS", str(GARMENTS)) for a in arguments.split())]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    if "this processor does not compute in bf16" in result.stderr:
        pytest.skip("the processor has no bf16")
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(pattern, result.stdout), result.stdout
    assert [line for line in result.stderr.splitlines() if not line.startswith("hardnet: ")] == []


NOISY = """
import os, sys
import hardnet.cli.info as info
from hardnet.__main__ import main

def measure(*arguments, original=info.measure_cost, **options):
    print("noise")
    os.system("echo noise")
    return original(*arguments, **options)

info.measure_cost = measure
sys.argv = ["hardnet", "info", "hardnet68"]
sys.exit(main())
"""


def test_what_is_printed_while_a_command_runs_is_no_result() -> None:
    result = subprocess.run([sys.executable, "-c", NOISY], cwd=REPO, capture_output=True, text=True)
    assert (result.returncode, result.stdout.count("noise"), result.stderr.count("noise")) == (0, 0, 2)
    assert result.stdout.startswith("hardnet68 for one image")


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("-m hardnet weights list | :", 0, ""),  # a reader that leaves early
        pytest.param(
            *("-m hardnet weights list > /dev/full", 4, "standard output cannot be written: No space left on device"),
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device"),
        ),
        pytest.param("-m hardnet predict - <&-", 2, "there are no images to work on", marks=pytest.mark.slow),
        pytest.param("-m hardnet info 1>&- 2>&-", 0, "", marks=pytest.mark.slow),
        pytest.param("-OO -m hardnet info", 0, "", marks=pytest.mark.slow),
    ],
)
def test_unusual_interpreters_and_streams_give_no_tracebacks(command: str, status: int, message: str) -> None:
    command = ["bash", "-o", "pipefail", "-c", f"{sys.executable} {command}"]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert (result.returncode, len(result.stderr.splitlines())) == (status, message != "")
    assert message in result.stderr


def test_a_stray_error_names_its_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise IsADirectoryError(errno.EISDIR, "Is a directory", "runs/options.json")

    monkeypatch.setattr("hardnet.cli.info.measure_cost", fail)
    assert main(["info"]) == 4
    assert capsys.readouterr() == ("", "hardnet: runs/options.json: Is a directory\n")


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("", 2, "COMMAND"),
        ("predict no/such.jpg", 2, "no/such.jpg"),
        (f"predict {GARMENTS} --threshold 1.5", 2, "threshold"),
        ("predict x.jpg --topk 0", 2, "must be an integer >= 1, got '0'"),
        ("predict x.jpg --model hardnet69", 2, "hardnet68"),
        ("predict x.jpg --model hardnet39ds --weights IMAGENET1K_V9", 2, "known: IMAGENET1K_V1"),
        ("predict x.jpg --weights no/such.pth", 3, "no/such.pth: no such file"),
        ("predict x.jpg --device cuda:99", 2, "device"),
        ("predict x.jpg --precision int8", 2, "--precision int8 requires --calibration"),
        ("predict x.jpg --calibration y.jpg --precision bf16", 2, "--calibration goes with --precision int8"),
        ("predict x.jpg --labels no/labels.txt", 2, "labels"),
        ("info --size 12by12", 2, "as in 224 or 480x640"),
        ("info --size 16", 2, "16"),
    ],
)
def test_errors_in_words(command: str, status: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        result = main(command.split())
    except SystemExit as end:  # of argparse
        result = end.code
    out, err = capsys.readouterr()
    assert (result, out, "Traceback" in err) == (status, "", False)
    assert message in err


def test_info_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert "17,565,348  4,246,114,304" in capsys.readouterr().out
    assert main(["info", "hardnet85", "--size", "64x96"]) == 0
    rows = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["stem", *(f"stage {n}" for n in range(1, 7)), "head", "total"]
    for column in (-4, -3, -2):
        *numbers, total = [int(row[column].replace(",", "")) for row in rows]
        assert sum(numbers) == total


def test_weights_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    record = publish(monkeypatch, tmp_path, "hardnet39ds")
    file = next(tmp_path.glob("*.pth"))
    name = (record.model, record.tag)

    def run(*arguments: object) -> tuple[int, list[str]]:
        return main(["weights", *map(str, arguments)]), capsys.readouterr().out.splitlines()

    def cached() -> str:
        return next(line for line in run("list", record.model)[1] if record.tag in line).split()[-1]

    assert cached() == "no"
    assert main(["weights", "path", *name]) == 1
    assert f"hardnet weights download {record}" in capsys.readouterr().err
    status, [path] = run("download", *name)
    assert (status, Path(path).parent, cached()) == (0, download.cache_dir(), "yes")
    assert run("path", *name) == (0, [path])
    status, [line] = run("verify")
    assert (status, line.startswith(f"{path}: {record}, sha256:")) == (0, True)
    content = bytearray(Path(path).read_bytes())
    content[1000] ^= 1
    Path(path).write_bytes(content)
    status, [line] = run("verify")
    assert (status, line.startswith(f"{path}: ")) == (1, True)
    archive = tmp_path / "release.pth.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(file, "tiny.pth")
    status, [line] = run("verify", archive)
    assert (status, line.startswith(f"{archive}: {record}, sha256:")) == (0, True)
    archive.write_bytes(archive.read_bytes()[:100])
    status, [good, cut, absent, device] = run("verify", file, archive, tmp_path / "absent.pth", os.devnull)
    assert (status, good.startswith(f"{file}: {record}, sha256:"), cut.startswith(f"{archive}: ")) == (1, True, True)
    assert absent.endswith("no such file")
    assert device == f"{os.devnull}: cannot be read: Not a regular file"


INTERRUPTED = """
import signal, sys
import hardnet.__main__ as program

def announce(*arguments):
    signal.signal = install
    install(*arguments)
    print("ready", flush=True)

signal.signal, install = announce, signal.signal
sys.exit(program.main())
"""


@pytest.mark.parametrize("lines", [1, 2], ids=["while it imports", "while it predicts"])
def test_interrupts_end_with_status_130_and_no_traceback(lines: int) -> None:
    command = [sys.executable, "-c", INTERRUPTED, "predict", *[str(GARMENTS)] * 100, "--format", "jsonl"]
    options = {"cwd": REPO, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    handler = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    with subprocess.Popen(command, preexec_fn=handler, **options) as process:
        for _ in range(lines):
            process.stdout.readline()
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    for enabled in (True, False):
        with progress_bar(None, "caf\n", unit="images", enabled=enabled) as bar:
            bar.total = 10
            bar.update(10)
            bar.update(-5)
    assert ("caf\\n: " in stream.getvalue()) is terminal


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["--help"], ["predict", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
    assert "Exit status: 0" in capsys.readouterr().out
