"""The Python blocks of the documentation run as they stand, one after the other, without a network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pictures import one_torch_thread

from hardnet.config import CONFIGS, feature_levels

DOCS = Path(__file__).parent.parent / "docs"
RUN = ("backbone.md", "speed.md")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", RUN)
def test_python_blocks_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    text = (DOCS / name).read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python")
    namespace: dict[str, object] = {"__name__": name}
    with one_torch_thread():
        for block in blocks:
            # Blank lines in front, so that a traceback names the line in the document.
            source = "\n" * text.count("\n", 0, block.start(1)) + block[1]
            exec(compile(source, str(DOCS / name), "exec"), namespace)  # noqa: S102  (our own documents)


def test_the_table_of_channels() -> None:
    rows = re.findall(r"^\| (`hardnet[^|]*) \|((?: \d+ \|){5})$", (DOCS / "backbone.md").read_text(), re.MULTILINE)
    told = {
        name: [int(n) for n in row.split("|") if n.strip()] for names, row in rows for name in re.findall(r"\w+", names)
    }
    assert told == {name: [level.channels for level in feature_levels(config)] for name, config in CONFIGS.items()}


def test_links_and_pictures_are_there() -> None:
    for document in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        prose = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)", prose):
            if not target.startswith(("http://", "https://")):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
