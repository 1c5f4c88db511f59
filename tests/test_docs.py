"""Documentation: every Python block runs, every command parses, every link and file exists; API pages, pictures.

The Python of a page runs in its own process, offline, in a folder with the files that the pages name (``work_folder``).
ImageNet weights are random numbers there (:mod:`offline_copy`). Commands are parsed by the program's own parser; quick
ones that print a shown result are run.
"""

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib import import_module
from itertools import dropwhile, groupby, pairwise, takewhile
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from offline_copy import REPO, blocks_of, lay_ready, python_of, read_page, run_script

import hardnet
from hardnet import cli
from tools import pictures

PAGES = sorted(
    str(path.relative_to(REPO))
    for folder, pattern in ((".", "*.md"), ("docs", "**/*.md"), ("benchmarks", "*.md"), ("images", "*.md"))
    for path in (REPO / folder).glob(pattern)
)
RUN_ELSEWHERE = ("docs/demo.md", "docs/hub/pytorch_vision_hardnet.md", "docs/hub/pytorch_vision_hardnet.ko.md")
ADDRESS = re.compile(
    r"https://(?:github\.com/OWNER/REPOSITORY/blob|raw\.githubusercontent\.com/OWNER/REPOSITORY)/main/"
)
END = "\x1e"


# Python


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    ready = lay_ready(tmp_path_factory.mktemp("offline"), ["hardnet68"])
    # Pages that begin with `import hardnet` are read by someone who has installed it.
    return ready | {"PYTHONPATH": os.pathsep.join((ready["PYTHONPATH"], ready["REPOSITORY"]))}


@pytest.fixture
def work_folder(tmp_path: Path) -> Path:
    """The pictures of the clone, a folder of photographs, one of them broken, and a checkpoint."""
    shutil.copytree(REPO / "images", tmp_path / "images")
    (tmp_path / "photographs").mkdir()
    shutil.copy(REPO / "images" / "cat.jpg", tmp_path / "photographs")
    (tmp_path / "photographs" / "broken.jpg").write_bytes(b"not a picture")
    state = hardnet.create_model("hardnet68").state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "my_checkpoint.pth")
    return tmp_path


def as_script(text: str) -> str:
    """Keep the Python of a page on its lines, for the numbers in tracebacks; print a mark after each block."""
    lines = [""] * text.count("\n")
    for block in blocks_of(text):
        if block.language == "python":
            code = [*block.code.splitlines(), f"print({END!r})"]
            lines[block.line - 1 : block.line - 1 + len(code)] = code
    return "\n".join(lines)


def outputs_of(text: str, language: str) -> list[tuple[str, str | None]]:
    """Return every block of a language, and the text block right behind it, which is its output."""
    blocks, lines, expected = blocks_of(text), text.splitlines(), {}
    for block, following in pairwise(blocks):
        closed = block.line + block.code.count("\n")
        if following.language == "text" and not "".join(lines[closed : following.line - 2]).strip():
            expected[block.line] = following.code
    return [(block.code, expected.get(block.line)) for block in blocks if block.language == language]


def assert_output(printed: str, expected: str) -> None:
    """Percentages may differ by one point, since processors round differently; "..." stands for further lines."""
    if expected.rstrip().endswith("\n..."):
        lines = expected.rstrip().splitlines()[:-1]
        printed, expected = "\n".join(printed.splitlines()[: len(lines)]), "\n".join(lines)
    share = re.compile(r" *(\d+(?:\.\d+)?)%")
    assert share.sub("%", printed).strip() == share.sub("%", expected).strip()
    shares = [[float(n) for n in share.findall(text)] for text in (printed, expected)]
    assert shares[0] == pytest.approx(shares[1], abs=1)


WITH_PYTHON = [page for page in PAGES if python_of(read_page(page)) and page not in RUN_ELSEWHERE]


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page != "README.md")) for page in WITH_PYTHON]
)
def test_python_runs(page: str, variables: dict[str, str], work_folder: Path) -> None:
    text = read_page(page)
    script = work_folder / "page.py"
    script.write_text(as_script(text), encoding="utf-8")
    printed = run_script(script, variables).split(END + "\n")[:-1]
    for output, (_, expected) in zip(printed, outputs_of(text, "python"), strict=True):
        if expected is not None:
            assert_output(output, expected)


# Commands


def commands_of(code: str) -> Iterator[list[str]]:
    """Split a bash block into simple commands, without assignments, redirections and comments."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for separates, group in groupby(lexer, ("&&", "||", ";", "|").__contains__):
            words = takewhile(lambda word: word != ">", group)
            command = list(dropwhile(re.compile("[A-Z_]+=").match, words))
            if command and not separates:
                yield command


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page: str) -> None:
    text = read_page(page)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`((?:python -m |torchrun [^`]*)?hardnet [^`]*--[^`]*)`", prose)
    for code in [*(code for code, _ in outputs_of(text, "bash")), *(command.replace("\n", " ") for command in inline)]:
        for words in commands_of(code):
            place = words.index("hardnet") if "hardnet" in words else 0
            if words[place] == "hardnet" and (place == 0 or words[place - 1] == "-m"):
                try:
                    cli.build_parser().parse_args(words[place + 1 :])
                except SystemExit as end:
                    if end.code:  # not --help
                        pytest.fail(f"{shlex.join(words)}: refused by the command line")


SHOWN = [(code, text) for page in PAGES for code, text in outputs_of(read_page(page), "bash") if text is not None]


@pytest.mark.parametrize(("code", "expected"), SHOWN)
def test_commands_print_what_is_shown(
    code: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPO)
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    *_, words = commands_of(code)
    assert cli.main(words[words.index("hardnet") + 1 :]) == 0
    assert_output(capsys.readouterr().out, expected)


# Links and files


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_exist(page: str) -> None:
    prose = re.sub(r"^```.*?^```", "", read_page(page), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)", prose):
        start = REPO if ADDRESS.match(target) else (REPO / page).parent
        path, _, anchor = ADDRESS.sub("", target).partition("#")
        if path.startswith(("http://", "https://")):
            continue
        file = start / path if path else REPO / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings], target
    for name in re.findall(r"`((?:hardnet|docs|tests|tools|benchmarks|examples|images|notebooks)/[\w./-]*)`", prose):
        assert (REPO / name).exists(), name


# API pages, which `.ci/run` builds with Sphinx


@pytest.mark.parametrize("module", ["hardnet", "hardnet.images", "hardnet.engines", "hardnet.training", "hubconf"])
def test_every_public_name_is_on_one_page(module: str) -> None:
    entry = re.compile(r"^\.\. auto(?:class|data|exception|function):: ([\w.]+)", re.MULTILINE)
    targets = [
        name for page in (REPO / "docs" / "api").glob("*.rst") for name in entry.findall(page.read_text("utf-8"))
    ]
    documented = [id(resolve_name(target)) for target in targets]
    public = import_module(module)
    assert [name for name in public.__all__ if id(getattr(public, name)) not in documented] == []
    assert len(targets) == len(set(targets))


# Pictures


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_committed_picture_can_be_drawn_again(name: str) -> None:
    assert pictures.PICTURES[name]().axes
    assert (pictures.FOLDER / name).stat().st_size > 10_000


def test_the_confusions_are_those_of_the_reported_error() -> None:
    [evaluation] = json.loads((pictures.TRAINING / "fashion-mnist-confusions.json").read_text(encoding="utf-8"))
    record = hardnet.get_weights(evaluation["model"], evaluation["weights"])
    assert tuple(evaluation["classes"]) == record.categories
    assert [sum(row) for row in evaluation["confusion"]] == [1000] * 10
    correct = sum(row[number] for number, row in enumerate(evaluation["confusion"]))
    assert 100 - correct / 100 == pytest.approx(record.top1_error, abs=1e-9)
