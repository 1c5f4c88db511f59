"""The documentation: its Python runs as it stands, its commands are ones that the command line takes, its tables hold.

The Python of a page runs in a process of its own, without a network, in a folder where the paths lie that the pages
name (``work_folder``). Weights of ImageNet are random numbers there, as in :mod:`offline_copy`. Every command in a bash
block or, where it has an option, in running text is taken apart: ``hardnet``'s arguments by its own parser, torchrun's
by torch's, scripts and modules by their paths. ``RUNS`` are run as well: what needs neither a download nor much time.
Parsed only are training, evaluation, export, extraction, the benchmark, the demo and whatever takes weights that are
not in the package; they have tests of their own.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from offline_copy import REPO, blocks_of, lay_ready, python_of, read_page, run_script

import hardnet
from hardnet.cli import _parser, main
from hardnet.models.config import CONFIGS, feature_levels, head_index
from hardnet.weights.catalog import CATALOG, WeightsRecord

PAGES = sorted(
    str(path.relative_to(REPO))
    for folder, pattern in ((".", "*.md"), ("docs", "**/*.md"), ("benchmarks", "*.md"), ("images", "*.md"))
    for path in (REPO / folder).glob(pattern)
)
RUN_ELSEWHERE = {
    "docs/demo.md": "test_space.py",  # a server, and the yaml and text files of a Space
    "docs/hub/pytorch_vision_hardnet.md": "test_hub_page.py",
    "docs/hub/pytorch_vision_hardnet.ko.md": "test_hub_page.py",
}
WITH_PYTHON = [page for page in PAGES if python_of(read_page(page))]
END = "\x1e"


# Python


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    ready = lay_ready(tmp_path_factory.mktemp("offline"), ["hardnet68", "hardnet85"])
    # Pages that begin with `import hardnet` are read by someone who has installed it.
    return ready | {"PYTHONPATH": os.pathsep.join((ready["PYTHONPATH"], ready["REPOSITORY"]))}


@pytest.fixture
def work_folder(tmp_path: Path) -> Path:
    """What a reader has: the pictures of the clone, a folder of photographs, one of them broken, and a checkpoint."""
    shutil.copytree(REPO / "images", tmp_path / "images")
    (tmp_path / "photographs").mkdir()
    shutil.copy(REPO / "images" / "cat.jpg", tmp_path / "photographs")
    (tmp_path / "photographs" / "broken.jpg").write_bytes(b"not a picture")
    torch.manual_seed(1)
    state = hardnet.create_model("hardnet68").state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "my_checkpoint.pth")
    return tmp_path


def as_script(text: str) -> str:
    """Keep the Python of a page where it stands, so that a traceback names the line; a mark follows each block."""
    lines = [""] * text.count("\n")
    for block in blocks_of(text):
        if block.language == "python":
            code = [*block.code.splitlines(), f"print({END!r})"]
            lines[block.line - 1 : block.line - 1 + len(code)] = code
    return "\n".join(lines)


def outputs_of(text: str, language: str) -> list[tuple[str, str | None]]:
    """Return every block of a language, and the text block right behind it, which is what it prints."""
    blocks = blocks_of(text)
    lines = text.splitlines()
    told = {}
    for block, following in pairwise(blocks):
        closed = block.line + block.code.count("\n")
        if following.language == "text" and not "".join(lines[closed : following.line - 2]).strip():
            told[block.line] = following.code
    return [(block.code, told.get(block.line)) for block in blocks if block.language == language]


def assert_output(printed: str, told: str) -> None:
    """Percentages may be off by one point: processors differ in the last digits."""
    share = re.compile(r" *(\d+(?:\.\d+)?)%")
    assert share.sub("%", printed).strip() == share.sub("%", told).strip()
    assert [float(n) for n in share.findall(printed)] == pytest.approx([float(n) for n in share.findall(told)], abs=1)


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page not in RUN_ELSEWHERE])
def test_python_runs(page: str, variables: dict[str, str], work_folder: Path) -> None:
    text = read_page(page)
    script = work_folder / f"{Path(page).stem}.py"
    script.write_text(as_script(text), encoding="utf-8")
    printed = run_script(script, variables).split(END + "\n")[:-1]
    told = outputs_of(text, "python")
    assert len(printed) == len(told) > 0
    for output, (_, expected) in zip(printed, told, strict=True):
        if expected is not None:
            assert_output(output, expected)


@pytest.mark.parametrize("page", PAGES)
def test_no_block_is_missed(page: str) -> None:
    languages = {block.language for block in blocks_of(read_page(page))}
    assert languages <= {"python", "bash", "text"} | ({"yaml"} if page == "docs/demo.md" else set())
    told = read_page(page)
    with_output = sum(output is not None for kind in ("python", "bash") for _, output in outputs_of(told, kind))
    assert with_output == sum(block.language == "text" for block in blocks_of(told)) or page == "docs/demo.md"


# Commands


def commands_of(code: str) -> Iterator[list[str]]:
    """Take a bash block apart into simple commands, without assignments, redirections and comments."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word not in ("&&", "||", ";", "|"):
                words.append(word)
                continue
            words = words[: words.index(">")] if ">" in words else words
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words
            words = []


def check_arguments(arguments: list[str]) -> None:
    try:
        _parser().parse_args(arguments)
    except SystemExit as end:  # with status 0, it was asked for help
        if end.code:
            pytest.fail(f"hardnet {shlex.join(arguments)}: not what the command line takes")


def extras() -> set[str]:
    """Return the names of the optional dependencies. (Python 3.10 has no reader for the format.)"""
    section = read_page("pyproject.toml").split("[project.optional-dependencies]\n", 1)[1].split("\n[", 1)[0]
    return set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))


def check_command(words: list[str]) -> None:
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "torchrun":
        from torch.distributed.run import parse_args

        launched = parse_args(rest)
        assert launched.module
        check_module([launched.training_script, *launched.training_script_args])
    elif program in ("python", "python3") and rest[0] == "-m":
        check_module(rest[1:])
    elif program in ("python", "python3"):
        assert (REPO / rest[0]).is_file(), words
    elif program == "hardnet":
        check_arguments(rest)
    elif program == "pip":
        assert rest[0] == "install"
        for wanted in re.findall(r"\[(.*?)\]", " ".join(rest)):
            assert set(wanted.split(",")) <= extras(), words
    elif program.startswith("."):
        assert (REPO / program).is_file(), words
    else:
        assert program in ("git", "cd", "export", "mkdir", "cp", "source", "ruff", "mypy"), words


def check_module(words: list[str]) -> None:
    module, *arguments = words
    if module == "hardnet":
        check_arguments(arguments)
    elif (REPO / module.split(".")[0]).is_dir():
        assert (REPO / module.replace(".", "/")).with_suffix(".py").is_file(), words
    else:
        assert importlib.util.find_spec(module) is not None, words


def is_quick(arguments: list[str]) -> bool:
    """Whether a command is one that is run here: it needs no download and takes a moment."""
    try:
        given = _parser().parse_args(arguments)
    except SystemExit:
        return False
    if arguments[0] not in ("predict", "info", "weights"):
        return False
    if arguments[0] == "info":
        return True
    if arguments[0] == "weights":
        if arguments[1] == "verify":
            return all((REPO / file).exists() for file in given.files)
        return arguments[1] == "list" or given.tag == "FASHION_MNIST"
    in_package = given.weights == "FASHION_MNIST" or (given.model is None and given.weights is None)
    return in_package and all((REPO / path).exists() for path in given.paths)


def quick_runs() -> Iterator[Any]:
    seen = set()
    for page in PAGES:
        for code, told in outputs_of(read_page(page), "bash"):
            for words in commands_of(code):
                if "hardnet" in words[:3]:
                    arguments = words[words.index("hardnet") + 1 :]
                    if is_quick(arguments) and (shlex.join(arguments), told) not in seen:
                        seen.add((shlex.join(arguments), told))
                        yield pytest.param(arguments, told, id=shlex.join(arguments))


RUNS = list(quick_runs())


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_what_the_command_line_takes(page: str) -> None:
    text = read_page(page)
    for code, _ in outputs_of(text, "bash"):
        for words in commands_of(code):
            check_command(words)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for command in re.findall(r"`((?:python -m|python [\w/]+\.py|torchrun|hardnet) [^`]*--[^`]*)`", prose):
        [words] = commands_of(command.replace("\n", " "))
        check_command(words)


@pytest.mark.parametrize(("arguments", "told"), RUNS)
def test_quick_commands_run(
    arguments: list[str], told: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPO)
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    if told is not None:
        assert_output(printed, told)


def test_what_is_told_of_a_command_is_run() -> None:
    told = [output for page in PAGES for _, output in outputs_of(read_page(page), "bash") if output is not None]
    assert sorted(told) == sorted(run.values[1] for run in RUNS if run.values[1] is not None)
    assert {run.values[0][0] for run in RUNS} == {"predict", "info", "weights"}


# Links and tables


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_links_and_pictures_are_there() -> None:
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", read_page(page), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)]+)", prose):
            if target.startswith(("http://", "https://")):
                continue
            path, _, anchor = target.partition("#")
            place = (REPO / page).parent / path if path else REPO / page
            assert place.exists(), f"{page}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in map(slug, headings), f"{page}: {target}"


def test_the_readme_links_to_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/\w+\.md)\)", read_page("README.md")))
    assert linked == {page for page in PAGES if re.fullmatch(r"docs/\w+\.md", page)}


def test_the_table_of_channels() -> None:
    rows = re.findall(r"^\| (`hardnet[^|]*) \|((?: \d+ \|){5})$", read_page("docs/backbone.md"), re.MULTILINE)
    told = {
        name: [int(n) for n in row.split("|") if n.strip()] for names, row in rows for name in re.findall(r"\w+", names)
    }
    assert told == {name: [level.channels for level in feature_levels(config)] for name, config in CONFIGS.items()}


def test_the_table_of_cuts() -> None:
    text = read_page("docs/migration.md")
    rows = [row.split(" | ") for row in re.findall(r"^\| ((?:\d+|everything|the linear).*) \|$", text, re.MULTILINE)]
    for column, name in enumerate(("hardnet39ds", "hardnet68", "hardnet85"), start=1):
        start, cuts = 0, []
        for level in feature_levels(CONFIGS[name]):
            cuts.append(f"`base[{start}:{level.module_index + 1}]`: {level.channels} channels")
            start = level.module_index + 1
        head = head_index(CONFIGS[name])
        assert [row[column] for row in rows] == [*cuts, f"`base[:{head}]`", f"`base[{head}][3]`"]
    assert feature_levels(CONFIGS["hardnet68"]) == feature_levels(CONFIGS["hardnet68ds"])


def record_row(record: WeightsRecord) -> str:
    [who] = [name for name in ("the HarDNet authors", "osmr (imgclsmob)", "this project") if name in record.provenance]
    cells = (
        f"`{record.model}`",
        f"`{record.tag}`",
        who,
        f"{record.top1_error:.2f} / {record.top5_error:.2f}, {record.reported_by}",
        record.evaluated_on,
        record.num_classes,
        f"{record.preprocessing.resize}, {record.preprocessing.crop}",
        record.block_activation,
    )
    return f"| {' | '.join(map(str, cells))} |"


def source_rows(record: WeightsRecord) -> Iterator[str]:
    for number, source in enumerate(record.sources, start=1):
        place = source.url.replace("package:", "../hardnet/")
        told = f"{number}. {source.publisher} | [{source.filename}]({place}) | `{source.digest}`"
        yield f"| `{record.model}` | `{record.tag}` | {told} |"


def test_the_tables_of_weights_are_the_catalogue() -> None:
    rows = re.findall(r"^\| `hardnet\w+` \|.*$", read_page("docs/weights.md"), re.MULTILINE)
    records = list(CATALOG.values())
    assert rows == [*map(record_row, records), *(row for record in records for row in source_rows(record))]
    assert {record.licence for record in records} == {"MIT"}
    for record in records:
        wanted = (0.286, 0.353) if record.tag == "FASHION_MNIST" else (0.485, 0.229)
        assert (record.preprocessing.mean[0], record.preprocessing.std[0]) == wanted


def test_the_table_of_extras() -> None:
    table = read_page("docs/guide.md").split("| extra | for |", 1)[1].split("\n\n", 1)[0]
    told = re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in table.splitlines()[2:]))
    assert set(told) == extras()
