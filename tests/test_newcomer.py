"""From sixty pictures to a model with the core packages alone, one command after the other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_data import make_folder

pytestmark = pytest.mark.slow

REPO = Path(__file__).parent.parent
CLASSES = ["class_0", "class_1", "class_2"]
# Python imports a module of this name at its start. Here it hides the packages of the extras.
CORE_ONLY = """
import sys

for name in ("matplotlib", "openvino", "onnxruntime", "onnx", "nncf", "timm", "ray", "pyarrow", "pandas"):
    sys.modules[name] = None
"""


def test_sixty_pictures_become_a_model(tmp_path: Path) -> None:
    """Twenty pictures of each of three classes, and three files that are none."""
    pictures = make_folder(tmp_path, images=20, size=96, split="pictures")
    (pictures / "class_0" / "._0.png").write_bytes(b"Mac OS X")
    (pictures / "class_1" / "notes.txt").write_text("not a picture")
    (pictures / ".ipynb_checkpoints").mkdir()
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(CORE_ONLY)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'start'}{os.pathsep}{REPO}", "HARDNET_OFFLINE": "1"}

    def run(*command: str) -> tuple[str, str]:
        result = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        return result.stdout, result.stderr

    def hardnet(*arguments: str) -> tuple[str, str]:
        return run("-m", "hardnet", *arguments)

    printed, messages = hardnet("finetune", "pictures", "--output", "runs/mine", "--epochs", "6", "--workers", "0")
    assert all(name in printed for name in CLASSES)
    assert "runs/mine" in printed.splitlines()[-1] + printed.splitlines()[-2]  # the next command, ready to copy
    held_out = (tmp_path / "runs" / "mine" / "validation_images.txt").read_text().splitlines()
    assert len(held_out) == 12

    hardnet("predict", "pictures", "--weights", "runs/mine", "--output", "labels.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert len(rows) == 60
    assert {prediction["label"] for row in rows for prediction in row["predictions"]} == set(CLASSES)

    printed, messages = hardnet("evaluate", "pictures", "--weights", "runs/mine", "--format", "json")
    assert json.loads(printed)[0]["images"] == 60
    assert "trained on" in messages
    hardnet("explain", "pictures/class_1", "--weights", "runs/mine", "--output", "maps")
    assert len(list((tmp_path / "maps").rglob("*.png"))) == 20
    hardnet("export", "--weights", "runs/mine", "--format", "torch-export", "--output", "mine.pt2")
    assert torch.export.load(tmp_path / "mine.pt2").module()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    code = "import hardnet; m = hardnet.from_pretrained('runs/mine'); print(*m.categories, m.training)"
    assert run("-c", code)[0].split() == [*CLASSES, "False"]
