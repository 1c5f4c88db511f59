"""How Sphinx builds the API pages from the docstrings; CONTRIBUTING.md has the command. Nothing asks the network."""

from __future__ import annotations

import builtins
import re
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

sys.path.insert(0, str(Path(__file__).parents[2]))  # the checkout: hubconf.py, and its own copy of the package

import hardnet
from hardnet.images.preprocess import Preprocessing

project = "HarDNet for PyTorch"
version = release = hardnet.__version__
html_title = f"{project} {release}"

extensions = ["sphinx.ext.autodoc"]
html_theme = "furo"
html_copy_source = False
html_show_copyright = False
python_maximum_signature_line_length = 90

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": True, "exclude-members": "extra_repr"}

# A reference to something of ours that is on no page is a warning, and the build is strict.
nitpicky = True
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(torch|PIL|timm|torchvision|collections|pathlib|os|typing(_extensions)?)\..*",
    ),  # no network, so no links
    (
        "py:(class|data)",
        r"hardnet\.(engines\.folding\.Model|factory\.ModelOptions|utils\.distributed\.T|models\.network\._Network|weights\.load\.Network)|"
        r"Source|Progress|ImageLike|Item|Paths|Calibration|Decode|Box|PRECISIONS|Transform|Tensor|nn\.Module|Image\.Image",
    ),
]

# Names that some modules import for type checkers only: autodoc evaluates the annotations, wherever they stand.
vars(builtins).update(Preprocessing=Preprocessing, Image=Image, WeightsRecord=hardnet.WeightsRecord)


def read_google_style(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring into what Sphinx reads, by napoleon's parser.

    The extension napoleon would take the words before a colon for the type of an attribute, and leave the sections of a
    property alone. Ours have annotations, and properties say what they raise.
    """
    kind = "method" if what in ("attribute", "data", "property") else what
    lines[:] = GoogleDocstring(lines, Config(), app, kind, name, obj, options).lines()


def shorten_defaults(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write ``...`` for default values that are no expression, such as ``<factory>``."""
    return signature and re.sub(r"= ?<[^<>]*(<[^<>]*>)?>", "= ...", signature), returns


def setup(app: Sphinx) -> None:
    """Register the functions above; called by Sphinx."""
    app.connect("autodoc-process-signature", shorten_defaults)
    app.connect("autodoc-process-docstring", read_google_style)
