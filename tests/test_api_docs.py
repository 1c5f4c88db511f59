"""The API pages name everything public, once, and what they show has something to say.

Sphinx is not needed here: ``.ci/run`` builds the pages, and a warning fails it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

REPO = Path(__file__).parent.parent
ENTRIES = [
    (page.name, target)
    for page in sorted((REPO / "docs" / "api").glob("*.rst"))
    for target in re.findall(
        r"^\.\. auto(?:class|data|exception|function):: ([\w.]+)", page.read_text(encoding="utf-8"), re.MULTILINE
    )
]
"""Pages, and the names that are documented there."""


def public_modules() -> list[str]:
    """Return the modules that say what is public in them."""
    paths = (REPO / "hubconf.py", *sorted((REPO / "hardnet").rglob("*.py")))
    with_all = [path for path in paths if re.search(r"^__all__ = ", path.read_text(encoding="utf-8"), re.MULTILINE)]
    names = [".".join(path.relative_to(REPO).with_suffix("").parts) for path in with_all]
    return [name.removesuffix(".__init__") for name in names]


def parts(target: str) -> Iterator[tuple[str, Any]]:
    """Iterate over what is documented under a name and can be called: itself, methods and properties."""
    documented = resolve_name(target)
    if callable(documented):
        yield target, documented
    if inspect.isclass(documented):
        for name, member in vars(documented).items():
            kinds = (property, classmethod, staticmethod)
            if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, kinds)):
                yield f"{target}.{name}", member


def parameters_told(docstring: str) -> list[str]:
    """Return the names under ``Args:``."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    return re.findall(r"^    (\w+): ", section[1], re.MULTILINE) if section else []


@pytest.mark.parametrize("module", public_modules())
def test_every_public_name_is_on_one_page(module: str) -> None:
    for name in import_module(module).__all__:
        public = getattr(import_module(module), name)
        pages = [page for page, target in ENTRIES if resolve_name(target) is public]
        assert len(pages) == 1, f"{module}.{name} is on {pages or 'no page'} of docs/api"


def test_nothing_is_documented_twice() -> None:
    targets = [target for _, target in ENTRIES]
    assert sorted(targets) == sorted(set(targets))


@pytest.mark.parametrize("target", [target for _, target in ENTRIES])
def test_what_can_be_called_has_a_docstring(target: str) -> None:
    for name, part in parts(target):
        made_up = f"{getattr(part, '__name__', '')}("  # a dataclass without one gets its signature
        assert not (part.__doc__ or made_up).startswith(made_up), name


@pytest.mark.parametrize("target", [target for _, target in ENTRIES])
def test_the_parameters_told_are_those_that_are_taken(target: str) -> None:
    for name, part in parts(target):
        told = parameters_told(part.__doc__)
        if told:
            assert told == [each for each in inspect.signature(part).parameters if each != "self"], name
