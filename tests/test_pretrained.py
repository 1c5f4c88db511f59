"""Models saved with their labels to folders and to the Hub: loaded again, or refused with one error."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_data import options

import hardnet
from hardnet import Classifier, HarDNet, WeightsError, create_model
from hardnet.cli import main
from hardnet.images.preprocess import Preprocessing
from hardnet.training import train

NAME = "hardnet39ds"
LABELS = ("cat", "dog")
PREPROCESSING = Preprocessing(40, 32, (0.1, 0.2, 0.3), (1.0, 0.5, 0.25))
TIMM = {"input_size": [3, 32, 32], "crop_pct": 0.8, "mean": [0.1, 0.2, 0.3], "std": [1.0, 0.5, 0.25]}


@pytest.fixture(scope="module")
def model() -> HarDNet:
    return create_model(NAME, num_classes=2).eval()


@pytest.fixture(scope="module")
def saved(model: HarDNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder, labels=LABELS, preprocessing=PREPROCESSING)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy whose files can be changed one by one."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in saved.iterdir():
        os.link(file, copy / file.name)
    return copy


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(one.eval()(x), other.eval()(x))


def test_a_folder_gives_the_model_with_its_labels(model: HarDNet, saved: Path) -> None:
    assert {file.name for file in saved.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    for loaded in (
        hardnet.from_pretrained(saved),
        HarDNet.from_pretrained(str(saved)),
        create_model(NAME, weights=saved),
        hardnet.hardnet39ds(weights=str(saved)),
    ):
        assert type(loaded) is HarDNet
        assert loaded.categories == LABELS
        assert loaded.preprocessing == PREPROCESSING
        assert_same(loaded, model)
    classifier = Classifier(NAME, weights=saved, device="cpu")
    assert (classifier.labels, classifier.transform) == (LABELS, PREPROCESSING)
    assert Classifier(hardnet.from_pretrained(saved), device="cpu").labels == LABELS
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: hardnet\n")
    assert "cat, dog" in card
    assert "license" not in card  # it is not known


def test_what_a_model_has_of_its_own_is_kept(tmp_path: Path, saved: Path) -> None:
    from dataclasses import replace

    from hardnet.models.config import CONFIGS

    torch.manual_seed(0)
    grey = HarDNet(replace(CONFIGS[NAME], block_activation="relu"), num_classes=3, in_chans=1).eval()
    grey.preprocessing = Preprocessing(0, 0)  # the whole picture
    grey.save_pretrained(tmp_path / "grey")
    loaded = hardnet.from_pretrained(tmp_path / "grey").eval()
    x = 9 * torch.rand(1, 1, 64, 64)
    assert (loaded.in_chans, loaded.config.block_activation) == (1, "relu")
    assert loaded.preprocessing == grey.preprocessing
    assert torch.equal(loaded(x), grey(x))
    assert Classifier(loaded, device="cpu").labels == ("class 0", "class 1", "class 2")
    hardnet.from_pretrained(saved).save_pretrained(tmp_path / "again")  # labels travel on
    assert hardnet.from_pretrained(tmp_path / "again").categories == LABELS
    shipped = create_model(NAME, weights="FASHION_MNIST", num_classes=3)
    shipped.save_pretrained(tmp_path / "new head")  # no names are made up for it
    assert "label_names" not in json.loads((tmp_path / "new head" / "config.json").read_text())
    assert "Initial weights: hardnet39ds FASHION_MNIST" in (tmp_path / "new head" / "README.md").read_text()


def test_what_cannot_be_saved_is_refused(model: HarDNet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 labels for 2 classes"):
        model.save_pretrained(tmp_path / "x", labels=("a", "b", "c"))
    with pytest.raises(ValueError, match="without classes"):
        create_model(NAME, num_classes=0).save_pretrained(tmp_path / "x")
    replaced = create_model(NAME, num_classes=2)
    replaced.base[0].norm = torch.nn.GroupNorm(1, 24)
    with pytest.raises(ValueError, match=r"base\.0\.norm is not as in hardnet39ds"):
        replaced.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def change(**entries: object) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | entries
        path.unlink()
        path.write_text(json.dumps(config))

    return write


def replace_file(name: str, content: bytes) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).write_bytes(content)

    return write


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (change(architecture="resnet50"), "unknown architecture 'resnet50'; known: hardnet39ds"),
        (change(architecture=["hardnet39ds"]), "unknown architecture"),
        (change(architecture="hardnet68"), "does not fit hardnet68"),
        (change(label_names=["cat"]), "has the names of 1 classes, but a head of 2"),
        (change(label_names=["cat", 3]), "must be a list of names"),
        (change(hardnet={"block_activation": "gelu"}), "block_activation must be relu or relu6"),
        (change(hardnet={"preprocessing": {"resize": 10**9}}), '"preprocessing" is not valid'),
        (change(hardnet={}, pretrained_cfg=TIMM | {"interpolation": "hamming"}), "interpolation must be one of"),
        (change(hardnet=[]), "must hold an object"),
        (replace_file("config.json", b"[1]"), "must hold an object"),
        (replace_file("config.json", b"{"), "is not valid JSON"),
        (replace_file("config.json", b"[" * 100_000), "is not valid JSON"),
        (replace_file("model.safetensors", b"\x80\x02."), "belongs to other weights"),
        (lambda folder: [file.unlink() for file in folder.iterdir()], "a folder without config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: no such file"),
    ],
)
def test_a_folder_that_makes_no_sense_gives_one_error(
    broken: Callable[[Path], object], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(folder)
    with pytest.raises(WeightsError, match=message):
        hardnet.from_pretrained(folder)
    assert main(["weights", "verify", str(folder)]) != 0
    assert message.split("'")[0].split("\\")[0] in capsys.readouterr().out


def test_weights_of_an_interrupted_save_bring_their_own_labels(folder: Path, tmp_path: Path) -> None:
    create_model(NAME, num_classes=3).save_pretrained(tmp_path / "new", labels=("a", "b", "c"))
    replace_file("model.safetensors", (tmp_path / "new" / "model.safetensors").read_bytes())(folder)
    assert hardnet.from_pretrained(folder).categories == ("a", "b", "c")


@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos"])
def test_the_interpolation_of_timms_configuration_is_carried(interpolation: str, folder: Path) -> None:
    change(hardnet={}, pretrained_cfg=TIMM | {"interpolation": interpolation})(folder)
    assert Classifier(folder, device="cpu").transform.interpolation == interpolation


def test_no_path_is_taken_from_the_config(folder: Path, model: HarDNet) -> None:
    change(weights="../../x.safetensors", pretrained_cfg={"file": "/etc/passwd", "url": "http://example.invalid"})(
        folder
    )
    assert_same(hardnet.from_pretrained(folder), model)


def test_timm_loads_the_folder(saved: Path, model: HarDNet) -> None:
    timm = pytest.importorskip("timm")
    pytest.importorskip("hardnet.timm_registry")

    loaded = timm.create_model(f"local-dir:{saved}", pretrained=True)
    assert loaded.num_classes == 2
    assert loaded.pretrained_cfg["label_names"] == list(LABELS)
    assert tuple(loaded.pretrained_cfg["mean"]) == PREPROCESSING.mean
    assert_same(loaded, model)


def test_a_trained_model_travels_with_its_classes(small_data: Path, tmp_path: Path) -> None:
    changes = {"model": "hardnet68ds", "epochs": 1, "batch_size": 6, "ema": 0.5, "resume": "auto"}
    settings = options(small_data, tmp_path / "run", **changes, save_pretrained=True)
    metrics = train(settings).metrics
    assert metrics is not None
    folder = tmp_path / "run" / "pretrained"
    card = (folder / "README.md").read_text()
    assert "a running average of the weights (decay 0.5 per step) at the end of epoch 1, seed 5" in card
    assert f"validation images of the run: top-1 error {metrics['ema_val_top1_error']:.2f} %, cross-entropy" in card
    assert "top-5" not in card  # there are three classes
    assert "Initial weights" not in card
    assert str(tmp_path) not in card + (folder / "config.json").read_text()

    (folder / "README.md").write_text("my own card")
    train(settings)  # has nothing left to do
    assert (folder / "README.md").read_text() == "my own card"
    shutil.rmtree(folder)
    train(settings)
    assert (folder / "README.md").read_text() == card

    final = create_model("hardnet68ds", weights=tmp_path / "run" / "model.pt")
    assert_same(hardnet.from_pretrained(folder), final)


def test_with_the_mixin_of_huggingface_hub(saved: Path, model: HarDNet, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class Network(HarDNet, hub.PyTorchModelHubMixin):  # type: ignore[misc,name-defined]
        pass

    loaded = Network.from_pretrained(saved)
    assert type(loaded) is Network
    assert_same(loaded, model)
    loaded.save_pretrained(tmp_path / "x")
    assert hardnet.from_pretrained(tmp_path / "x").categories == LABELS
