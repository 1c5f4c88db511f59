"""The pages for the PyTorch Hub: their Python runs as a reader pastes it."""

from pathlib import Path

import pytest
from offline_copy import REPO, blocks_of, lay_ready, python_of, read_page, run_script

from hardnet.models.config import CONFIGS

PAGES = ("pytorch_vision_hardnet.md", "pytorch_vision_hardnet.ko.md")


CASES = [(PAGES[1], "hardnet68"), *((PAGES[0], name) for name in CONFIGS)]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "name"), CASES)
def test_a_reader_pastes_it(page: str, name: str, tmp_path: Path) -> None:
    """With this model in place of the first: its line is there, as a comment."""
    *blocks, _ = python_of(read_page(f"docs/hub/{page}"))  # the last one stands alone
    code, line = "\n".join(blocks), f'model = torch.hub.load("OWNER/REPOSITORY", "{name}", pretrained=True)'
    assert code.count(line) == 1
    pasted = code.replace("model = torch", "# model = torch").replace("# # ", "# ").replace(f"# {line}", line)
    assert (pasted == code) == (name == "hardnet68")
    variables = lay_ready(tmp_path, [name])
    script = tmp_path / "work" / "pasted.py"
    script.parent.mkdir()
    script.write_text(pasted, encoding="utf-8")
    lines = [line.split("  ", 1) for line in run_script(script, variables).splitlines()]
    values = [float(value) for value, _ in lines]
    assert len(lines) == 5
    assert values == sorted(values, reverse=True)
    assert {label for _, label in lines} <= set((REPO / "imagenet_classes.txt").read_text().splitlines())
    assert (script.parent / "cat.jpg").read_bytes() == (REPO / "images" / "cat.jpg").read_bytes()


def test_a_block_runs_in_a_clone_without_a_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPO)
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    page = read_page(f"docs/hub/{PAGES[0]}")
    exec(python_of(page)[-1], {})  # noqa: S102  (the page's code is what is tested)
    [text] = [block.code for block in blocks_of(page) if block.language == "text"]
    outputs = (capsys.readouterr().out, text)
    printed, expected = ([line.split("  ") for line in output.splitlines()] for output in outputs)
    assert [label for _, label in printed] == [label for _, label in expected]
    assert [float(value) for value, _ in printed] == pytest.approx([float(value) for value, _ in expected], abs=1e-3)
