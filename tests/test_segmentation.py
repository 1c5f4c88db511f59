"""FC-HarDNet-70: the golden vectors of the original, sizes, weights, engines, exports and the Segmenter."""

import copy
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden_input, golden_state, same
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hardnet
from hardnet import ImageError, Segmenter, WeightsError, load_image
from hardnet.cli import main
from hardnet.engines import FORMATS, accelerate, export
from hardnet.models.config import FCHARDNET70
from hardnet.models.cost import measure_cost
from hardnet.models.segmentation import FCHarDNet
from hardnet.weights.cityscapes import CITYSCAPES

REPO = Path(__file__).parent.parent
INPUTS = {"even": (1, (1, 3, 128, 192)), "odd": (2, (1, 3, 97, 131))}


@functools.cache
def golden_model() -> FCHarDNet:
    """The network filled with the golden values; tests copy it before they change it."""
    model = FCHarDNet(FCHARDNET70)
    model.load_state_dict(golden_state("fchardnet70"), strict=True)
    return model.eval()


def difference_from_the_original(model: FCHarDNet, which: str, device: str = "cpu") -> float:
    """Largest difference relative to the largest logit; infinite where other classes win other than by rounding."""
    golden = np.load(GOLDEN / "fchardnet70.npz")
    with torch.inference_mode():
        logits = copy.deepcopy(model).to(device)(golden_input(*INPUTS[which]).to(device)).cpu()
    assert list(logits.shape) == list(golden[f"{which}/shape"])
    best, second = logits.topk(2, 1).values.unbind(1)
    other = logits.argmax(1).numpy() != golden[f"{which}/argmax"]
    if (other & ((best - second) > 1e-4).numpy()).any():
        return np.inf
    flat = logits.double().flatten().numpy()
    picked = flat[np.linspace(0, flat.size - 1, 64).astype(np.int64)]
    summary = np.concatenate([[flat.mean(), flat.std(), np.abs(flat).max()], picked])
    want = golden[f"{which}/summary"]
    return float(np.abs(summary - want).max() / want[2])


def test_state_dict_is_the_originals() -> None:
    want = json.loads((GOLDEN / "fchardnet70.keys.json").read_text())
    assert [[key, list(value.shape)] for key, value in FCHarDNet(FCHARDNET70).state_dict().items()] == want


@pytest.mark.parametrize("which", INPUTS)
def test_evaluation_equals_the_original(which: str, device: str) -> None:
    assert difference_from_the_original(golden_model(), which, device) <= 2e-5


MISTAKES = {
    "activation": lambda model: setattr(model.base[4].layers[0], "relu", nn.ReLU6()),
    "order of links": lambda model: model.denseBlocksUp[0].links[1].reverse(),
    "pooling": lambda model: model.base.__setitem__(6, nn.MaxPool2d(2)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_mistake_is_noticed(mistake: str) -> None:
    """The comparison with the golden vectors can fail."""
    model = copy.deepcopy(golden_model())
    MISTAKES[mistake](model)
    assert difference_from_the_original(model, "even") > 2e-5


@pytest.fixture(scope="module")
def authors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the authors' training script writes it, with torch 1 and NumPy 1."""
    state = {f"module.{key}": value for key, value in golden_state("fchardnet70").items()}
    content = {"epoch": 90000, "model_state": state, "best_iou": np.float64(0.777)}
    path = tmp_path_factory.mktemp("authors") / "model.pkl"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    return path


def test_the_authors_checkpoints_load_with_classes_and_bgr(authors_file: Path) -> None:
    model = hardnet.fchardnet70(authors_file).eval()
    assert difference_from_the_original(model, "even") <= 2e-5
    assert model.categories == tuple(CITYSCAPES)
    red = Image.new("RGB", (70, 64), "red")
    first, _, last = model.preprocessing(red).mean((1, 2)).tolist()
    assert (first, last) == pytest.approx((-0.406 / 0.225, (1 - 0.485) / 0.229), rel=1e-5)
    assert model.preprocessing(red).shape == (3, 64, 70)
    with pytest.raises(WeightsError, match=r"does not fit hardnet68: .* It looks like a checkpoint of fchardnet70"):
        hardnet.create_model("hardnet68", weights=authors_file)


def test_new_classes_and_channels(authors_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "hardnet"):
        model = hardnet.create_model("fchardnet70", weights=authors_file, num_classes=4, in_chans=1)
    assert "19 classes in the weights, 4 in the model" in caplog.text
    assert model.categories is None
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    loaded = hardnet.fchardnet70(weights=tmp_path / "mine.pth")
    assert (loaded.num_classes, loaded.in_chans, loaded.categories, loaded.preprocessing) == (4, 1, None, None)


def test_what_cannot_be_built_is_said() -> None:
    with pytest.raises(ValueError, match="no weights of fchardnet70: give the path of a file"):
        hardnet.fchardnet70(weights="DEFAULT")
    with pytest.raises(ValueError, match="fchardnet70 has no feature pyramid"):
        hardnet.create_model("fchardnet70", features_only=True)


@pytest.mark.parametrize("shape", [(2, 64, 64), (1, 65, 127), (0, 64, 96)])
def test_any_size_from_64_up_and_an_empty_batch(shape: tuple[int, int, int]) -> None:
    batch, height, width = shape
    with torch.inference_mode():
        assert golden_model()(torch.zeros(batch, 3, height, width)).shape == (batch, 19, height, width)
    with pytest.raises(ValueError, match=r"fchardnet70 takes images .* at least 64 pixels, got \(1, 3, 63, 64\)"):
        golden_model()(torch.zeros(1, 3, 63, 64))


def test_cost() -> None:
    """Its authors report 35.4 GMACs, which count resizing too."""
    cost = measure_cost(FCHARDNET70, height=1024, width=2048)
    assert (cost.total.layers, cost.total.params) == (70, 4119257)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        FCHarDNet(FCHARDNET70).eval()(torch.empty(1, 3, 1024, 2048))
    assert cost.total.macs * 2 == counter.get_total_flops()
    assert 35.2e9 < cost.total.macs < 35.4e9
    assert cost.total.output_shape == (19, 1024, 2048)


ENGINES = ["eager", "torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("onnxruntime", "openvino"))]


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_equal_the_model(engine: str) -> None:
    if engine in ("onnxruntime", "openvino"):
        pytest.importorskip(engine)
    fast = accelerate(golden_model(), engine=engine)
    for shape in ((2, 3, 64, 96), (1, 3, 97, 131)):
        x = golden_input(3, shape)
        with torch.inference_mode():
            want = golden_model()(x)
        for _ in range(3):  # the torch engine compiles a shape that comes repeatedly
            assert same(fast(x), want)
    with pytest.raises(ValueError, match="at least 64 pixels"):
        fast(torch.zeros(1, 3, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "precision", "least"),
    [("torch", "bf16", 0.98), ("openvino", "bf16", 0.98), ("openvino", "int8", 0.9), ("onnxruntime", "int8", 0.9)],
)
def test_lower_precisions_keep_most_pixels(engine: str, precision: str, least: float) -> None:
    calibration = [golden_input(seed, (2, 3, 64, 96)) for seed in range(4)] if precision == "int8" else None
    model, x = golden_model(), golden_input(9, (1, 3, 128, 192))
    try:
        fast = accelerate(model, engine=engine, precision=precision, calibration=calibration)
    except (ImportError, ValueError) as error:
        pytest.skip(str(error))
    with torch.inference_mode():
        assert (fast(x).argmax(1) == model(x).argmax(1)).float().mean() > least


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_exports_are_compared_with_the_model(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{FORMATS[kind].suffix}"
    assert export(golden_model(), path, format=kind) == path


@pytest.fixture(scope="module")
def segmenter(authors_file: Path) -> Segmenter:
    return Segmenter("fchardnet70", weights=authors_file, device="cpu")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three photographs of two sizes, and one that is too small."""
    (tmp_path / "pictures").mkdir()
    for name, size in {"a.jpg": (96, 72), "b.png": (70, 64), "c.jpg": (96, 72), "small.png": (40, 90)}.items():
        load_image(REPO / "images" / "coffee.jpg").resize(size).save(tmp_path / "pictures" / name)
    return tmp_path / "pictures"


def test_a_map_has_the_pictures_size_and_the_models_classes(segmenter: Segmenter, pictures: Path) -> None:
    *results, small = segmenter(pictures, batch_size=4)
    for result in results:
        x = segmenter.transform(load_image(result.source))
        with torch.inference_mode():
            want = golden_model()(x[None]).argmax(1)[0]
        assert torch.equal(result.classes, want.to(torch.uint8))
    assert small.to_dict() == {"source": str(pictures / "small.png"), "error": small.error}
    with pytest.raises(ImageError, match="too small, the model takes 64 pixels"):
        small.to_image()


def test_what_a_result_shows(segmenter: Segmenter, pictures: Path) -> None:
    [result] = segmenter([pictures / "b.png"])
    shares = result.to_dict()["shares"]
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    label = tuple(CITYSCAPES)[result.classes[10, 20]]
    assert shares[label] == pytest.approx((result.classes == result.classes[10, 20]).float().mean().item(), abs=1e-6)
    assert result.to_image().getpixel((20, 10)) == result.classes[10, 20]
    picture = load_image(pictures / "b.png")
    assert result.overlay(opacity=0).tobytes() == picture.tobytes()
    assert result.overlay(picture, opacity=1).getpixel((20, 10)) == CITYSCAPES[label]
    assert all(label in result._repr_html_() for label in shares)


def test_any_module_its_labels_and_its_errors(caplog: pytest.LogCaptureFixture, pictures: Path) -> None:
    first = Segmenter(nn.Conv2d(3, 2, 1), labels=["first", "second"], device="cpu")
    assert "preprocessing of the weights is unknown" in caplog.text
    [result] = first(torch.full((3, 8, 9), -1.0))
    assert set(result.shares) <= {"first", "second"}
    broken = nn.Conv2d(3, 2, 1)
    nn.init.constant_(broken.bias, torch.nan)
    [broken] = Segmenter(broken, device="cpu")([pictures / "a.jpg"])
    assert "not a number" in broken.error
    with pytest.raises(ValueError, match=r"must return .* for \(1, 3, 72, 96\), got \(1, 3, 36, 48\)"):
        Segmenter(nn.AvgPool2d(2), device="cpu")(pictures / "a.jpg")


def test_the_command_writes_maps_and_resumes_by_file(
    authors_file: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = tmp_path / "maps"
    command = ["segment", str(pictures), "--weights", str(authors_file), "--output", str(maps), "--device", "cpu"]
    assert main([*command, "--overlay"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(maps / f"{name}.png") for name in "abc"]
    assert {path.name for path in maps.glob("*.overlay.png")} == {"a.overlay.png", "b.overlay.png", "c.overlay.png"}
    [result] = Segmenter(authors_file, device="cpu")([pictures / "a.jpg"])
    with Image.open(maps / "a.png") as written:
        assert np.array_equal(np.asarray(written), result.classes.numpy())
    (maps / "b.png").unlink()
    assert main([*command, "--overlay"]) == 1
    assert capsys.readouterr().out.startswith(str(maps / "b.png"))
    assert main([*command, "--overlay", "--engine", "torch"]) == 2
    assert "is of other weights or options" in capsys.readouterr().err
