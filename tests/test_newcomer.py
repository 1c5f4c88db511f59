"""From sixty pictures to a model with the core packages alone, one command after the other."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

pytestmark = pytest.mark.slow

REPO = Path(__file__).parent.parent
SHAPES = ("circle", "cross", "square")
# Python imports a module of this name at its start. Here it hides the packages of the extras.
CORE_ONLY = """
import sys

for name in ("matplotlib", "openvino", "onnxruntime", "onnx", "nncf", "timm", "ray", "pyarrow", "pandas"):
    sys.modules[name] = None
"""


def draw(shape: str, seed: int) -> Image.Image:
    rng = random.Random(f"{shape}{seed}")  # noqa: S311  test data
    image = Image.new("RGB", (96, 80), tuple(rng.randrange(120) for _ in range(3)))
    pen, side = ImageDraw.Draw(image), rng.randrange(30, 50)
    left, top = rng.randrange(96 - side), rng.randrange(80 - side)
    box, colour = (left, top, left + side, top + side), tuple(rng.randrange(160, 256) for _ in range(3))
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.line(box, fill=colour, width=9)
        pen.line((box[0], box[3], box[2], box[1]), fill=colour, width=9)
    return image


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twenty pictures of each of three shapes, and three files that are none."""
    for shape in SHAPES:
        (tmp_path / "shapes" / shape).mkdir(parents=True)
        for seed in range(20):
            draw(shape, seed).save(tmp_path / "shapes" / shape / f"{seed}.png")
    (tmp_path / "shapes" / "circle" / "._0.png").write_bytes(b"Mac OS X")
    (tmp_path / "shapes" / "cross" / "notes.txt").write_text("not a picture")
    (tmp_path / "shapes" / ".ipynb_checkpoints").mkdir()
    return tmp_path


def test_sixty_pictures_become_a_model(pictures: Path) -> None:
    (pictures / "start").mkdir()
    (pictures / "start" / "sitecustomize.py").write_text(CORE_ONLY)
    environment = {**os.environ, "PYTHONPATH": f"{pictures / 'start'}{os.pathsep}{REPO}", "HARDNET_OFFLINE": "1"}

    def run(*command: str) -> tuple[str, str]:
        result = subprocess.run(
            [sys.executable, *command], cwd=pictures, env=environment, capture_output=True, text=True, timeout=600
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        return result.stdout, result.stderr

    def hardnet(*arguments: str) -> tuple[str, str]:
        return run("-m", "hardnet", *arguments)

    printed, said = hardnet("finetune", "shapes", "--output", "runs/mine", "--epochs", "6", "--workers", "0")
    assert all(shape in printed for shape in SHAPES)
    assert "runs/mine" in printed.splitlines()[-1] + printed.splitlines()[-2]  # the next command, ready to copy
    held_out = (pictures / "runs" / "mine" / "validation_images.txt").read_text().splitlines()
    assert len(held_out) == 12

    hardnet("predict", "shapes", "--weights", "runs/mine", "--output", "labels.jsonl")
    rows = [json.loads(line) for line in (pictures / "labels.jsonl").read_text().splitlines()]
    assert len(rows) == 60
    assert {prediction["label"] for row in rows for prediction in row["predictions"]} == set(SHAPES)

    printed, said = hardnet("evaluate", "shapes", "--weights", "runs/mine", "--format", "json")
    assert json.loads(printed)[0]["images"] == 60
    assert "trained on" in said
    hardnet("explain", "shapes/cross", "--weights", "runs/mine", "--output", "maps")
    assert len(list((pictures / "maps").rglob("*.png"))) == 20
    hardnet("export", "--weights", "runs/mine", "--format", "torch-export", "--output", "mine.pt2")
    assert torch.export.load(pictures / "mine.pt2").module()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    code = "import hardnet; m = hardnet.from_pretrained('runs/mine'); print(*m.categories, m.training)"
    assert run("-c", code)[0].split() == [*SHAPES, "False"]
