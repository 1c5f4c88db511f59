"""The pages for the PyTorch Hub: their Python runs as a reader would paste it, and their figures are the catalogue's.

What the network would bring lies ready: the repository in torch.hub's cache, its files behind their addresses, and
weights of random numbers in a mirror folder, whose digest is entered into that copy's catalogue.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hardnet
from hardnet.complexity import measure_cost
from hardnet.config import CONFIGS

REPO = Path(__file__).parent.parent
PAGES = ("pytorch_vision_hardnet.md", "pytorch_vision_hardnet.ko.md")
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


def code_of(page: str) -> str:
    text = (REPO / "docs" / "hub" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python") == 4
    return "\n".join(blocks)


def without_comments(code: str) -> str:
    return re.sub(r" *#.*", "", code)


def chosen(code: str, name: str) -> str:
    """Load this model in place of the first: its line is there, as a comment."""
    wanted = f'model = torch.hub.load("OWNER/REPOSITORY", "{name}", pretrained=True)'
    assert code.count(wanted) == 1
    return code.replace("model = torch", "# model = torch").replace("# # ", "# ").replace(f"# {wanted}", wanted)


def lay_ready(folder: Path, name: str) -> dict[str, str]:
    """Put everything in its place that the page needs; returns the variables of the environment."""
    hub = folder / "torch" / "hub"
    copy = hub / "OWNER_REPOSITORY_main"
    copy.mkdir(parents=True)
    for item in SHIPPED:
        target = copy / item
        if (REPO / item).is_dir():
            shutil.copytree(REPO / item, target, ignore=shutil.ignore_patterns("__pycache__", "*.pth"))
        else:
            shutil.copy(REPO / item, target)
    (hub / "trusted_list").write_text("OWNER_REPOSITORY\n")  # as after the question whether to trust it
    torch.manual_seed(0)
    mirror = folder / "mirror"
    mirror.mkdir()
    source = hardnet.get_weights(name, "IMAGENET1K_V1").sources[-1]
    weights = mirror / source.filename
    torch.save(hardnet.create_model(name).state_dict(), weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[: len(source.digest.value)]
    catalog = copy / "hardnet" / "catalog.py"
    text = catalog.read_text(encoding="utf-8")
    assert text.count(f'"{source.digest.value}"') == 1
    catalog.write_text(text.replace(f'"{source.digest.value}"', f'"{digest}"'), encoding="utf-8")
    (folder / "sitecustomize.py").write_text(NETWORK)
    return {
        "PYTHONPATH": str(folder),
        "TORCH_HOME": str(folder / "torch"),
        "HARDNET_MIRROR": str(mirror),
        "REPOSITORY": str(copy),
        "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8",
    }


CASES = [
    (PAGES[0], "hardnet68"),
    pytest.param(PAGES[1], "hardnet68", marks=pytest.mark.slow),
    *(pytest.param(PAGES[0], name, marks=pytest.mark.slow) for name in CONFIGS if name != "hardnet68"),
]


@pytest.mark.parametrize(("page", "name"), CASES)
def test_a_reader_pastes_it(page: str, name: str, tmp_path: Path) -> None:
    code = code_of(page)
    assert chosen(code, "hardnet68") == code  # what stands there is what the first case runs
    variables = lay_ready(tmp_path, name)
    work = tmp_path / "work"
    work.mkdir()
    script = work / "pasted.py"
    script.write_text(chosen(code, name), encoding="utf-8")
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=work,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split("  ", 1) for line in result.stdout.splitlines()]
    values = [float(value) for value, _ in lines]
    assert len(lines) == 5
    assert values == sorted(values, reverse=True)
    assert {label for _, label in lines} <= set((REPO / "imagenet_classes.txt").read_text().splitlines())
    assert (work / "cat.jpg").read_bytes() == (REPO / "images" / "cat.jpg").read_bytes()


def test_both_languages_show_the_same_code() -> None:
    english, korean = map(code_of, PAGES)
    assert without_comments(english) == without_comments(korean)
    assert english.count("\n") == korean.count("\n")


@pytest.mark.parametrize("page", PAGES)
def test_front_matter(page: str) -> None:
    text = (REPO / "docs" / "hub" / page).read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in front.splitlines())
    assert fields["layout"] == "hub_detail"
    assert fields["category"] == "researchers"
    assert fields["accelerator"] == "cuda-optional"
    assert fields["tags"] == "[vision]"
    assert {"title", "summary", "author", "github-link", "github-id", "image", "order"} <= fields.keys()
    for name in ("image", "featured_image_1", "featured_image_2"):
        assert (REPO / "docs" / "pictures" / fields[name]).is_file()
    assert body.count("\n### ") == 4


@pytest.mark.parametrize("page", PAGES)
def test_the_table_is_the_catalogue(page: str) -> None:
    text = (REPO / "docs" / "hub" / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (hardnet\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    expected = []
    for name, config in CONFIGS.items():
        record = hardnet.get_weights(name, "IMAGENET1K_V1")
        millions = measure_cost(config).total.params / 1e6
        expected.append((name, f"{millions:.2f}", f"{record.top1_error:.2f}", f"{record.top5_error:.2f}"))
    assert rows == expected
