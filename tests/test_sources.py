"""Weights from every kind of source, handed to everything that takes weights: each says the same about the model."""

import hashlib
import importlib
import json
import logging
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import TINY, picture

import hardnet
from hardnet import Classifier, Extractor, HarDNet, WeightsError, create_model, load_weights
from hardnet.cli import main
from hardnet.images.preprocess import Preprocessing
from hardnet.weights.catalog import CATALOG

NAME, LABELS = "hardnet68ds", ("bird", "fish")  # not the default model
PREPROCESSING = Preprocessing(40, 32, (0.1, 0.2, 0.3), (1.0, 0.5, 0.25))
COLOURS = {"mean": PREPROCESSING.mean, "std": PREPROCESSING.std}


def trained(name: str, **options: Any) -> HarDNet:
    """A model whose statistics and head are not the initial ones."""
    torch.manual_seed(0)
    model = create_model(name, **options).train()
    with torch.no_grad():
        model(torch.rand(8, model.in_chans, 32, 32))
        model.get_classifier().bias.add_(0.1)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> HarDNet:
    return trained(NAME, num_classes=2)


@pytest.fixture(scope="module")
def sources(model: HarDNet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every kind of source of the same weights; those of the first three say nothing about classes."""
    root = tmp_path_factory.mktemp("sources")
    state = model.state_dict()
    torch.save(state, root / "state.pth")
    torch.save({"state_dict": {f"model.{key}": value for key, value in state.items()}}, root / "lightning.pth")
    with zipfile.ZipFile(root / "release.pth.zip", "w") as archive:
        archive.write(root / "state.pth", "state.pth")
    model.save_pretrained(root / "folder", labels=LABELS, preprocessing=PREPROCESSING)
    run = {"model": state, "architecture": NAME, "classes": list(LABELS), "preprocessing": PREPROCESSING.to_dict()}
    (root / "run").mkdir()
    torch.save(run, root / "run" / "best.pt")
    blobs, snapshot = root / "blobs", root / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for file in (root / "folder").iterdir():
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blob)
    return {
        "state dict": root / "state.pth",
        "Lightning": root / "lightning.pth",
        "archive": root / "release.pth.zip",
        "safetensors": root / "folder" / "model.safetensors",
        "run": root / "run",
        "file of a run": root / "run" / "best.pt",
        "folder": root / "folder",
        "repository": "hf-hub:owner/name",
    }


KINDS = ["state dict", "Lightning", "archive", "safetensors", "run", "file of a run", "folder", "repository"]
NAMELESS = KINDS[:3]


@pytest.fixture
def source(request: pytest.FixtureRequest, sources: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    hub = pytest.importorskip("huggingface_hub")
    snapshot = Path(sources["folder"]).parent / "snapshot"
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(snapshot))
    return sources[request.param]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "0.png"
    picture(0, 0).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for label, name in enumerate(LABELS):
        (root / name).mkdir()
        for index in range(5):
            picture(label, index).convert("RGB").save(root / name / f"{index}.png")
    return root


def outputs_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.full((1, 3, 32, 32), 0.5))


@pytest.mark.parametrize("source", KINDS, indirect=True)
def test_a_source_says_what_it_holds(source: Any, model: HarDNet, request: Any) -> None:
    kind = request.node.callspec.params["source"]
    loaded = load_weights(source)
    assert loaded.config.name == NAME
    assert loaded.categories == (None if kind in NAMELESS else LABELS)
    assert loaded.preprocessing == (None if kind in NAMELESS else PREPROCESSING)
    assert loaded.record is None
    for built in (
        create_model(NAME, weights=loaded),
        create_model(NAME, weights=source),
        hardnet.from_pretrained(source),
        HarDNet.from_pretrained(source),
        Classifier(source, device="cpu").model,
    ):
        assert torch.equal(outputs_of(built), outputs_of(model))
        assert (built.categories, built.preprocessing) == (loaded.categories, loaded.preprocessing)
    assert not hardnet.from_pretrained(source).training
    with pytest.raises(WeightsError, match="does not fit hardnet68"):
        create_model("hardnet68", weights=source)


COLOUR_FLAGS = " ".join(f"--{name} {' '.join(map(str, COLOURS[name]))}" for name in ("mean", "std"))
RUN = f"{{data}} --output {{out}}/run {' '.join(TINY)}"
FAST = {
    "predict": "predict {image} --weights {source} --device cpu --output {out}/rows.jsonl",
    "extract": "extract {image} --weights {source} --device cpu --output {out}/rows.jsonl",
    "info": "info --weights {source}",
    "verify": "weights verify {source}",
}
SLOW = {
    "export": "export --weights {source} --format torchscript --output {out}/x.pt",
    "explain": "explain {image} --weights {source} --device cpu --output {out}/x.png",
    "evaluate": "evaluate {data} --weights {source} --device cpu --split .",
    "benchmark": "benchmark --weights {source} --engines eager --size 32 --rounds 1 --turn-seconds 0.01",
    "train": f"train {RUN} --weights {{source}}",
    "teacher": f"train {RUN} --teacher {{source}} {COLOUR_FLAGS}",
    "finetune": f"finetune {RUN} --weights {{source}}",
    "ray": "predict {image} --weights {source} --on ray --output {out}/rows",
}


def labels_in(name: str, out: Path) -> set[str] | None:
    """Return the names of classes in what a command wrote; None if it writes none."""
    if name in ("train", "finetune"):
        return set(load_weights(out / "run").categories or ())
    if name == "export":
        texts = {"classes": ""}
        torch.jit.load(out / "x.pt", _extra_files=texts)
        return set(json.loads(texts["classes"]) or ())
    if name == "predict":
        [row] = map(json.loads, (out / "rows.jsonl").read_text().splitlines())
    elif name == "ray":
        [row] = pytest.importorskip("pyarrow.parquet").read_table(out / "rows").to_pylist()
    else:
        return None
    return {prediction["label"] for prediction in row["predictions"]}


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
@pytest.mark.parametrize("source", KINDS, indirect=True)
def test_every_command_takes_every_source(
    source: Any, name: str, image: Path, data: Path, tmp_path: Path, request: Any
) -> None:
    kind = request.node.callspec.params["source"]
    if name == "ray":
        pytest.importorskip("ray")
    if kind == "repository" and name in ("verify", "ray"):
        pytest.skip("verify takes files; the actors' processes do not have this test's Hub")
    command = (FAST | SLOW)[name].format(source=source, image=image, data=data, out=tmp_path)
    assert main(command.split()) == 0
    expected = set(LABELS)
    if kind in NAMELESS:
        expected = {"predict": {"class 0", "class 1"}, "ray": {"class 0", "class 1"}, "export": set()}.get(
            name, expected
        )
    assert labels_in(name, tmp_path) in (None, expected)


@pytest.mark.parametrize("source", KINDS, indirect=True)
def test_timm_takes_every_source(source: Any) -> None:
    timm = pytest.importorskip("timm")
    importlib.import_module("hardnet.timm_registry")
    overlay = {"file": str(source)}
    if str(source).startswith("hf-hub:"):
        overlay = {"source": "hf-hub", "hf_hub_id": source.removeprefix("hf-hub:")}
    built = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=2)
    assert built.config.name == NAME


@pytest.mark.slow
@pytest.mark.parametrize("source", KINDS, indirect=True)
def test_the_demo_takes_every_source(source: Any) -> None:
    pytest.importorskip("gradio")
    from hardnet.demo.choices import list_choices

    own = next(iter(list_choices(Classifier(source, device="cpu"), str(source)).values())).source
    assert own.model.config.name == NAME


# A model knows itself


def test_a_new_head_has_no_names(tmp_path: Path) -> None:
    reset = create_model("hardnet39ds", weights="FASHION_MNIST")
    assert reset.categories == CATALOG["hardnet39ds", "FASHION_MNIST"].categories
    reset.reset_classifier(10)
    own = create_model("hardnet39ds", weights="FASHION_MNIST", num_classes=10)  # classes of the caller
    for model in (reset, own):
        assert model.categories is None
        assert Classifier(model, device="cpu").labels == tuple(f"class {i}" for i in range(10))
        model.save_pretrained(tmp_path / "x")
        assert hardnet.from_pretrained(tmp_path / "x").categories is None


@pytest.mark.parametrize(
    "build",
    [lambda: create_model("hardnet39ds"), lambda: create_model("hardnet39ds", weights="FASHION_MNIST", num_classes=3)],
)
def test_an_untrained_model_warns_once(
    build: Callable[[], HarDNet], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    model = build()
    Classifier(model, device="cpu")
    Classifier(model, device="cpu")
    model.save_pretrained(tmp_path / "x")
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_a_classifier_leaves_the_model_in_its_mode() -> None:
    model = trained("hardnet39ds", num_classes=2).train()
    classifier = Classifier(model, device="cpu")
    classifier.predict(torch.rand(3, 32, 32))
    assert model.training
    with torch.no_grad():
        model.get_classifier().bias.fill_(7)  # the weights are shared
    assert classifier.model.get_classifier().bias[0] == 7
    assert not classifier.model.training


def test_a_pickled_model_has_its_methods_in_a_fresh_process(tmp_path: Path) -> None:
    torch.save(create_model("hardnet39ds", weights="FASHION_MNIST"), tmp_path / "model.pt")
    code = f"import torch\ntorch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)"
    code += f".save_pretrained({str(tmp_path / 'out')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
    assert hardnet.from_pretrained(tmp_path / "out").categories is not None


def test_the_default_is_one_rule() -> None:
    packaged = CATALOG["hardnet39ds", "FASHION_MNIST"]
    assert hardnet.get_weights() == packaged
    assert load_weights("DEFAULT").record == packaged
    assert Classifier(device="cpu").labels == packaged.categories
    assert Extractor(device="cpu").num_features == 1024
    assert hardnet.get_weights("hardnet85").tag == "IMAGENET1K_V1"
    assert hardnet.list_models("*ds") == ["hardnet39ds", "hardnet68ds"]
    assert "FASHION_MNIST" in hardnet.list_weights()


def test_activations_of_a_run_are_kept(tmp_path: Path) -> None:
    """A run that starts from weights with ReLU in the blocks ends in weights that say so."""
    state = trained("hardnet39ds", num_classes=2).state_dict()
    torch.save({"model": state, "architecture": "hardnet39ds", "block_activation": "relu"}, tmp_path / "model.pt")
    assert hardnet.from_pretrained(tmp_path).config.block_activation == "relu"


# Errors


@pytest.mark.parametrize("source", ["https://example.org/a.pth", "nowhere/x.pth", "x.zip"])
def test_errors_name_the_source(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(WeightsError, match=f"^{source}: "):
        load_weights(source)


def test_an_exported_file_is_named(model: HarDNet, tmp_path: Path) -> None:
    torch.jit.script(model).save(tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="TorchScript"):
        create_model(NAME, weights=tmp_path / "x.pt")


def test_offline_mode_holds_for_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    calls: list[bool] = []

    def snapshot_download(*_: object, local_files_only: bool, **__: object) -> str:
        calls.append(local_files_only)
        raise FileNotFoundError

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(WeightsError, match="HARDNET_OFFLINE is set"):
        load_weights("hf-hub:owner/name")
    assert calls == [True]


def test_a_file_of_the_hub_without_a_known_hash_is_refused(
    sources: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(sources["folder"]))
    with pytest.raises(WeightsError, match="is no known hash"):
        load_weights("hf-hub:owner/name")
