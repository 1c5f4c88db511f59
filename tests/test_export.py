"""Exported files compute what the model computes, without this library, or they are not kept."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import same
from torch import Tensor

from hardnet import ExportError, HarDNet, create_model, export
from hardnet.cli import main
from hardnet.engines import FORMATS, calibration, exporting
from hardnet.engines.base import levels_of
from hardnet.images.batches import prepare_each

PICTURES = Path(__file__).parent.parent / "images" / "fashion_mnist"

LOADERS = {
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(path)
texts = session.get_modelmeta().custom_metadata_map
logits = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
assert session.get_outputs()[0].shape == ["batch", 10]
""",
    "openvino": """
import openvino
model = openvino.Core().read_model(path)
texts = {key: model.get_rt_info(["hardnet", key]).astype(str) for key in ("model", "classes")}
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
logits = torch.from_numpy(compiled({"images": images.numpy()})["logits"])
""",
    "torch-export": """
texts = {"model": "", "classes": ""}
program = torch.export.load(path, extra_files=texts)
assert program.graph_signature.user_inputs == ("images",)
logits = program.module()(images)
""",
    "torchscript": """
texts = {"model": "", "classes": ""}
module = torch.jit.load(path, _extra_files=texts)
texts = {name: text.decode() for name, text in texts.items()}
logits = module(images=images)
""",
}
WITHOUT_HARDNET = """
import json, sys, torch
sys.modules["hardnet"] = None
path, given, result = sys.argv[1:]
images = torch.load(given)
"""


KINDS = [pytest.param(name, marks=[pytest.mark.slow] * (name != "torchscript")) for name in FORMATS]


@pytest.fixture(scope="module")
def model() -> HarDNet:
    return create_model("hardnet39ds", weights="FASHION_MNIST").eval()


@pytest.mark.parametrize("uint8", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_files_stand_alone(model: HarDNet, name: str, tmp_path: Path, uint8: bool) -> None:
    """Export, load in a process without this library, compare logits and texts."""
    path = export(model, tmp_path / f"m{FORMATS[name].suffix}", format=name, uint8_input=uint8)
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    images = model.preprocessing.normalise(pixels)
    torch.save(pixels if uint8 else images, tmp_path / "images.pt")
    code = WITHOUT_HARDNET + LOADERS[name] + "torch.save((logits.detach(), dict(texts)), result)\n"
    command = [sys.executable, "-W", "ignore", "-c", code, path, tmp_path / "images.pt", tmp_path / "result.pt"]
    subprocess.run(list(map(str, command)), check=True, cwd=tmp_path)
    logits, texts = torch.load(tmp_path / "result.pt")
    with torch.no_grad():
        assert same(logits, model(images))
    assert texts["model"] == "hardnet39ds"
    assert json.loads(texts["classes"])[8] == "Bag"
    left = {path.name, "images.pt", "result.pt"} | ({"m.bin"} if name == "openvino" else set())
    assert {file.name for file in tmp_path.iterdir()} == left


def test_a_file_that_differs_is_not_kept(model: HarDNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.pt"
    target.write_bytes(b"the previous one")
    right = FORMATS["torchscript"]
    wrong = right._replace(load=lambda path: lambda x: 1.0002 * right.load(path)(x))
    monkeypatch.setitem(FORMATS, "torchscript", wrong)
    with pytest.raises(ExportError, match=r"hardnet39ds differs from the model by 2.*nothing was written"):
        export(model, target, format="torchscript")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]
    assert target.read_bytes() == b"the previous one"


def _outputs(path: Path, name: str, x: Tensor) -> list[Tensor]:
    return levels_of(FORMATS[name].load(path)(x))


@pytest.mark.parametrize("name", KINDS)
def test_embeddings_and_pyramids(model: HarDNet, name: str, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 96, 64 if name == "torch-export" else 32)
    path = export(model, tmp_path / f"features{FORMATS[name].suffix}", format=name, features=True)
    pyramid = create_model("hardnet39ds", features_only=True).eval()
    levels = export(pyramid, tmp_path / f"levels{FORMATS[name].suffix}", format=name)
    with torch.no_grad():
        embedding = model.forward_head(model.forward_features(x), pre_logits=True)
        expected = pyramid(x)
    assert same(_outputs(path, name, x)[0], embedding)
    assert [same(*pair) for pair in zip(_outputs(levels, name, x), expected, strict=True)] == [True] * 4
    with pytest.raises(ValueError, match="features= is for classifiers"):
        export(pyramid, levels, format=name, features=True)


@pytest.mark.slow
@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize(("name", "precision"), [(n, p) for n in ("onnx", "openvino") for p in ("fp16", "int8")])
def test_lower_precisions(
    model: HarDNet, name: str, precision: str, uint8: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suffix = FORMATS[name].suffix
    images = torch.cat(list(prepare_each(PICTURES, model.preprocessing, model)))
    options = {"precision": precision, "calibration": [images] if precision == "int8" else None}
    small = export(model, tmp_path / f"small{suffix}", format=name, uint8_input=uint8, **options)
    large = export(model, tmp_path / f"large{suffix}", format=name, uint8_input=uint8)
    sizes = [sum(file.stat().st_size for file in tmp_path.glob(f"{path.stem}.*")) for path in (small, large)]
    assert sizes[0] < 0.6 * sizes[1]
    x = exporting._as_pixels(images, model.preprocessing) if uint8 else images
    logits, expected = _outputs(small, name, x)[0], _outputs(large, name, x)[0]
    assert logits.dtype == torch.float32
    assert not same(logits, expected)
    assert (logits.argmax(1) == expected.argmax(1)).float().mean() >= 0.9
    if precision == "int8":
        monkeypatch.setattr(calibration, "MOST_CHANGED", -0.01)
        with pytest.raises(ValueError, match="of the labels of the calibration images"):
            export(model, small, format=name, uint8_input=uint8, **options)
        assert _outputs(small, name, x)[0].equal(logits)  # the file is the previous one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "unknown format 'tflite'; known: onnx, openvino"),
        ({"format": "onnx"}, "must end in .onnx"),
        ({"format": "torchscript", "precision": "fp16"}, "torchscript has no 'fp16', only fp32"),
        ({"format": "torchscript", "uint8_input": True}, "the model takes 1 channels"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export(create_model("hardnet39ds", in_chans=1), tmp_path / "m.pt", **options)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", "hardnet39ds", "--weights", "FASHION_MNIST", "--format", "torchscript", "--output"]
    assert main([*command, str(tmp_path / "m.pt")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "m.pt")
    assert main([*command, str(tmp_path / "missing" / "m.pt")]) == 4
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
