"""HarDNet (Harmonic DenseNet) for torch.hub.

>>> model = torch.hub.load("OWNER/REPOSITORY", "hardnet68", pretrained=True)

``torch.hub.help`` on an entry point lists its keywords.
"""

dependencies = ["torch"]


def _check_package() -> None:
    """Say so when another module already goes by the name of this repository's package.

    torch.hub puts this folder first on the path, so only a module that the process has imported before can
    stand in the way.
    """
    import logging
    import sys
    from pathlib import Path

    module = sys.modules.get("hardnet")
    if module is None:
        return
    folder = Path(__file__).resolve().parent / "hardnet"
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", [])]
    where = next((str(place) for place in places if place), "an unknown place")
    if not hasattr(module, "create_model") or not hasattr(module, "__path__"):
        raise ImportError(
            f"another module named 'hardnet' is already imported in this process, from {where}, and hides this "
            f"library's package 'hardnet' in {folder}. Load this library in a process that has not imported the "
            "other module, or before it does; or rename the other module"
        )
    if not any(Path(place).resolve() in (folder, folder / "__init__.py") for place in places if place):
        logging.getLogger("hardnet.hub").warning(
            "the package 'hardnet' is already imported from %s and is used in place of the one in %s", where, folder
        )


_check_package()

from hardnet import hardnet39ds, hardnet68, hardnet68ds, hardnet85  # noqa: E402 (only once the name is known to be free)

__all__ = ["hardnet39ds", "hardnet68", "hardnet68ds", "hardnet85"]
