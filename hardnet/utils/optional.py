"""Optional packages: imported where they are needed, and refused by name and version if they do not fit."""

import importlib
from typing import Any

from torch.torch_version import TorchVersion


def require(package: str, lowest: str, *, extra: str | None = None) -> Any:
    """Import a package of at least the version ``lowest`` and return it.

    The ImportError says which version is there, which is required and how to get it. It names the package before the
    ``extra`` of this library that installs it: under torch.hub this library is not installed, and has no extras.
    """
    requirement = f"{package}>={lowest}"
    advice = f'pip install "{requirement}"' + (f' (or, from a checkout, pip install ".[{extra}]")' if extra else "")
    try:
        module = importlib.import_module(package)
        installed = str(getattr(module, "__version__", "0"))
        if TorchVersion(installed) >= lowest:
            return module
        problem = f"{package} {installed} is installed"
    except ModuleNotFoundError as error:
        problem = f"{package} is not installed" if error.name == package else f"{package} cannot be imported ({error})"
    raise ImportError(f"{problem}, {requirement} is required: {advice}")
