"""The API pages have every public name once, and every name on them has a docstring with the right parameters.

``.ci/run`` builds the pages with Sphinx; a warning fails it.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest

REPO = Path(__file__).parent.parent
ENTRY = re.compile(r"^\.\. auto(?:class|data|exception|function):: ([\w.]+)", re.MULTILINE)
TARGETS = [name for page in (REPO / "docs" / "api").glob("*.rst") for name in ENTRY.findall(page.read_text("utf-8"))]


@pytest.mark.parametrize("module", ["hardnet", "hardnet.images", "hardnet.engines", "hardnet.training", "hubconf"])
def test_every_public_name_is_on_one_page(module: str) -> None:
    documented = [id(resolve_name(target)) for target in TARGETS]
    missing = [
        name for name in import_module(module).__all__ if id(getattr(import_module(module), name)) not in documented
    ]
    assert missing == []
    assert len(TARGETS) == len(set(TARGETS))


@pytest.mark.parametrize("target", TARGETS)
def test_docstrings(target: str) -> None:
    documented = resolve_name(target)
    members = vars(documented).items() if inspect.isclass(documented) else ()
    parts = [member for name, member in members if inspect.isfunction(member) and not name.startswith("_")]
    for part in [documented, *parts] if callable(documented) else []:
        text = inspect.getdoc(part) or ""
        assert text, part
        assert not text.startswith(f"{part.__name__}("), "a dataclass without docstring"
        section = re.search(r"^Args:\n((?:    .*\n|\n)*)", text + "\n", re.MULTILINE)
        told = re.findall(r"^    (\w+): ", section[1], re.MULTILINE) if section else []
        assert not told or set(told) <= set(inspect.signature(part).parameters), part
