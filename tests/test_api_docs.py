"""The API pages have every public name once. ``.ci/run`` builds them with Sphinx; a warning fails it."""

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
