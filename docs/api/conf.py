"""How Sphinx builds the API pages from the docstrings; CONTRIBUTING.md has the command. Nothing asks the network."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the checkout: hubconf.py, and its own copy of the package

import hardnet

project = "HarDNet for PyTorch"
version = release = hardnet.__version__
html_title = f"{project} {release}"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_copy_source = False
default_role = "code"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False

# A reference to something of ours that is on no page is a warning, and the build is strict.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(torch|PIL|timm|torchvision|collections|pathlib|os|typing)\..*")]
