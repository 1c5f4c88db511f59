"""The documentation's code as a reader runs it: its blocks, and what the network would bring, laid ready.

That is the repository in torch.hub's cache, its files behind their addresses, and weights of random numbers in a mirror
folder, whose digests are entered into that copy's catalogue.
"""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

import hardnet

REPO = Path(__file__).parent.parent
SHIPPED = ("hubconf.py", "hardnet", "imagenet_classes.txt", "images")

# Python runs a module of this name at its start. Every other address than the repository's files is out of reach.
NETWORK = """
import io, os, urllib.error, urllib.request, urllib.response

FILES = "https://raw.githubusercontent.com/OWNER/REPOSITORY/main/"

class Handler(urllib.request.HTTPSHandler):
    def https_open(self, request):
        if not request.full_url.startswith(FILES):
            raise urllib.error.URLError("the network is switched off")
        path = os.path.join(os.environ["REPOSITORY"], request.full_url.removeprefix(FILES))
        content = open(path, "rb").read()
        headers = {"Content-Length": str(len(content))}
        response = urllib.response.addinfourl(io.BytesIO(content), headers, request.full_url, 200)
        response.msg = "OK"
        return response

urllib.request.install_opener(urllib.request.build_opener(Handler))
"""


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str  # "" if the fence does not say it
    code: str
    line: int  # of the page, on which the code begins, counted from 1


def read_page(page: str) -> str:
    """Return the text of a page, whose path is relative to the repository."""
    return (REPO / page).read_text(encoding="utf-8")


def blocks_of(text: str) -> list[Block]:
    """Return all fenced blocks; a fence that does not close, or an indented one, is an error."""
    fences = re.finditer(r"^```(.*)\n((?:(?!```).*\n)*?)```$", text, re.MULTILINE)
    blocks = [Block(match[1], match[2], text.count("\n", 0, match.start(2)) + 1) for match in fences]
    assert text.count("```") == 2 * len(blocks)
    return blocks


def python_of(text: str) -> list[str]:
    """Return the code of all Python blocks."""
    return [block.code for block in blocks_of(text) if block.language == "python"]


def copy_checkout(folder: Path) -> Path:
    """Copy what torch.hub needs of a clone to a new folder."""
    folder.mkdir(parents=True)
    for item in SHIPPED:
        if (REPO / item).is_dir():
            shutil.copytree(REPO / item, folder / item, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPO / item, folder)
    return folder


def lay_ready(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Put everything in its place for these models; returns the variables of the environment."""
    hub = folder / "torch" / "hub"
    copy = copy_checkout(hub / "OWNER_REPOSITORY_main")
    (hub / "trusted_list").write_text("OWNER_REPOSITORY\n")  # as after the question whether to trust it
    mirror = folder / "mirror"
    mirror.mkdir()
    for name in names:
        _publish(name, mirror, copy / "hardnet" / "weights" / "catalog.py")
    (folder / "sitecustomize.py").write_text(NETWORK)
    return {
        "PYTHONPATH": str(folder),
        "TORCH_HOME": str(folder / "torch"),
        "HARDNET_MIRROR": str(mirror),
        "REPOSITORY": str(copy),
        "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8",
    }


def _publish(name: str, mirror: Path, catalog: Path) -> None:
    """Let random numbers stand for a model's weights IMAGENET1K_V1."""
    source = hardnet.get_weights(name, "IMAGENET1K_V1").sources[-1]
    content = io.BytesIO()
    torch.manual_seed(0)
    torch.save(hardnet.create_model(name).state_dict(), content)
    digest = hashlib.sha256(content.getvalue()).hexdigest()[: len(source.digest.value)]
    (mirror / source.filename.replace(source.digest.value, digest)).write_bytes(content.getvalue())
    text = catalog.read_text(encoding="utf-8")
    assert text.count(f'"{source.digest.value}"') == 1
    catalog.write_text(text.replace(f'"{source.digest.value}"', f'"{digest}"'), encoding="utf-8")


def run_script(script: Path, variables: dict[str, str]) -> str:
    """Run a script in its folder and return what it printed; an error is that of the script."""
    command, folder, environment = [sys.executable, str(script)], script.parent, os.environ | variables
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=900)
    assert result.returncode == 0, result.stderr
    return result.stdout
