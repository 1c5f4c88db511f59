"""The pages for the PyTorch Hub: their Python runs as a reader pastes it."""

from pathlib import Path

import pytest
from offline_copy import REPO, blocks_of, lay_ready, python_of, read_page, run_script

from hardnet.models.config import CONFIGS

PAGES = ("pytorch_vision_hardnet.md", "pytorch_vision_hardnet.ko.md")


def code_of(page: str) -> str:
    blocks = python_of(read_page(f"docs/hub/{page}"))
    assert len(blocks) == 5  # the last one stands alone
    return "\n".join(blocks[:4])


def chosen(code: str, name: str) -> str:
    """Load this model in place of the first: its line is there, as a comment."""
    wanted = f'model = torch.hub.load("OWNER/REPOSITORY", "{name}", pretrained=True)'
    assert code.count(wanted) == 1
    return code.replace("model = torch", "# model = torch").replace("# # ", "# ").replace(f"# {wanted}", wanted)


CASES = [(PAGES[1], "hardnet68"), *((PAGES[0], name) for name in CONFIGS)]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "name"), CASES)
def test_a_reader_pastes_it(page: str, name: str, tmp_path: Path) -> None:
    code = code_of(page)
    assert chosen(code, "hardnet68") == code  # what stands there is what the first case runs
    variables = lay_ready(tmp_path, [name])
    work = tmp_path / "work"
    work.mkdir()
    script = work / "pasted.py"
    script.write_text(chosen(code, name), encoding="utf-8")
    lines = [line.split("  ", 1) for line in run_script(script, variables).splitlines()]
    values = [float(value) for value, _ in lines]
    assert len(lines) == 5
    assert values == sorted(values, reverse=True)
    assert {label for _, label in lines} <= set((REPO / "imagenet_classes.txt").read_text().splitlines())
    assert (work / "cat.jpg").read_bytes() == (REPO / "images" / "cat.jpg").read_bytes()


def test_a_block_runs_in_a_clone_without_a_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPO)
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    page = read_page(f"docs/hub/{PAGES[0]}")
    exec(python_of(page)[-1], {})  # noqa: S102  (the page's code is what is tested)
    [shown] = [block.code for block in blocks_of(page) if block.language == "text"]
    told, expected = ([line.split("  ") for line in text.splitlines()] for text in (capsys.readouterr().out, shown))
    assert [label for _, label in told] == [label for _, label in expected]
    assert [float(value) for value, _ in told] == pytest.approx([float(value) for value, _ in expected], abs=1e-3)
