"""HarDNet (Harmonic DenseNet) for torch.hub.

>>> model = torch.hub.load("OWNER/REPOSITORY", "hardnet68", pretrained=True)

``torch.hub.help`` on an entry point lists its keywords.
"""

import logging
import sys
from pathlib import Path as _Path  # torch.hub lists every public callable

dependencies = ["torch"]

_folder, _imported = _Path(__file__).resolve().parent / "hardnet", sys.modules.get("hardnet")
if _imported is not None:
    _where = getattr(_imported, "__file__", None) or next(iter(getattr(_imported, "__path__", ())), "an unknown place")
    if not hasattr(_imported, "create_model"):
        raise ImportError(
            f"another module named 'hardnet' is already imported in this process, from {_where}, and hides this "
            f"library's package {_folder}: load this library first, or in another process, or rename the other module"
        )
    if _Path(_where).resolve().parent != _folder:
        logging.getLogger("hardnet").warning("%s is already imported and is used in place of %s", _where, _folder)

from hardnet import hardnet39ds, hardnet68, hardnet68ds, hardnet85  # noqa: E402 (after the check of the name)

__all__ = ["hardnet39ds", "hardnet68", "hardnet68ds", "hardnet85"]
