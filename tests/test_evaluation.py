"""Evaluation: exact counts, the verb ``evaluate``, measured next to reported errors."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_data import TINY, make_folder, run_verb

import hardnet
from hardnet.cli import main
from hardnet.images.batches import Item, prepare
from hardnet.images.preprocess import Preprocessing
from hardnet.training.checkpoint import FINAL
from hardnet.training.comparison import resize
from hardnet.training.data import open_folder
from hardnet.training.evaluation import evaluate
from hardnet.training.metrics import METRICS, read_metrics
from hardnet.utils.distributed import Ranks
from hardnet.utils.errors import DataError, WeightsError
from hardnet.weights.catalog import CATALOG, Digest, Source, WeightsRecord


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsRecord:
    """Weights of three classes in the catalogue, served by a mirror, that take every image for one of class 0."""
    path = tmp_path / "mirror" / "three.pth"
    path.parent.mkdir()
    state = hardnet.create_model("hardnet39ds", num_classes=3).state_dict()
    state["base.14.3.weight"].zero_()
    state["base.14.3.bias"].copy_(torch.tensor([1.0, 0.0, 0.0]))
    torch.save(state, path)
    digest = Digest("sha256", hashlib.sha256(path.read_bytes()).hexdigest())
    made = WeightsRecord(
        model="hardnet39ds",
        tag="THREE",
        sources=(Source("https://example.invalid/three.pth", digest),),
        provenance="made by the tests",
        top1_error=66.67,
        top5_error=0.0,
        reported_by="the tests",
        classes=("class_0", "class_1", "class_2"),
        preprocessing=Preprocessing(40, 32),
    )
    monkeypatch.setenv("HARDNET_MIRROR", str(path.parent))
    monkeypatch.setitem(CATALOG, (made.model, made.tag), made)
    return made


def test_a_trained_model_is_evaluated_with_its_own_preprocessing(
    tmp_path: Path, small_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_verb("train", small_data, "--output", tmp_path / "run", *TINY)
    final = tmp_path / "run" / FINAL
    capsys.readouterr()
    weights = ["--model", "hardnet39ds", "--weights", final, "--device", "cpu"]
    assert run_verb("evaluate", small_data, *weights, "--format", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["preprocessing"]["resize"], row["preprocessing"]["crop"]) == (32, 32)
    measured = read_metrics(tmp_path / "run" / METRICS)[-1]
    assert row["images"] == 9
    assert row["top1_error"] == measured["val_top1_error"]
    assert row["top1_correct"] == round(9 * (1 - row["top1_error"] / 100))
    picture = next((small_data / "val").rglob("*.png"))
    assert main(["predict", str(picture), "--model", "hardnet39ds", "--weights", str(final), "--format", "json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    classes = sorted(folder.name for folder in (small_data / "val").iterdir())
    assert sorted(prediction["label"] for prediction in result["predictions"]) == classes
    with pytest.raises(WeightsError, match="hardnet68ds"):
        run_verb("evaluate", small_data, "--model", "hardnet68ds", "--weights", final, "--device", "cpu")
    make_folder(tmp_path / "more", classes=4, images=1, split="val")
    with pytest.raises(DataError, match=r"not among the 3 classes of .*: class_3"):
        run_verb("evaluate", tmp_path / "more", *weights)
    make_folder(tmp_path / "fewer", classes=2, images=4, split="val")
    with pytest.raises(DataError, match=r"the data set lacks 1 class of .*: class_2; --allow-missing-classes"):
        run_verb("evaluate", tmp_path / "fewer", *weights)
    arguments = ("--per-class", "--allow-missing-classes", "--format", "json")
    assert run_verb("evaluate", tmp_path / "fewer", *weights, *arguments) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert [sum(counts) for counts in row["confusion"]] == [4, 4, 0]
    assert row["class_accuracies"][2] is None


def test_each_weights_have_a_row_and_a_failure_loses_no_other(
    tmp_path: Path, small_data: Path, record: WeightsRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(hardnet.create_model("hardnet39ds", num_classes=5).state_dict(), tmp_path / "five.pth")
    arguments = ("--model", "hardnet39ds", "--device", "cpu", "--weights", "THREE", tmp_path / "five.pth", "THREE")
    assert run_verb("evaluate", small_data, *arguments) == 3
    captured = capsys.readouterr()
    assert [line.split()[:2] for line in captured.out.splitlines()[1:]] == [["hardnet39ds", "THREE"]] * 2
    assert "five.pth has 5 classes, the data set has 3" in captured.err
    with pytest.raises(ValueError, match=r"no errors of .*five\.pth are reported"):
        run_verb("evaluate", small_data, *arguments, "--expect")
    assert not capsys.readouterr().out  # before the first evaluation


def test_images_that_were_trained_on_are_told_from_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path, images=5, split="plain")
    run_verb("train", folder, "--output", tmp_path / "run", *TINY)
    capsys.readouterr()
    arguments = ("--weights", tmp_path / "run", "--device", "cpu", "--format", "json")
    for more, images, warning in (([], 15, True), (["--held-out"], 3, False)):
        assert run_verb("evaluate", folder, *arguments, *more) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)[0]["images"] == images
        assert ("was trained on 12 of these 15 images" in captured.err) is warning


def test_measured_stands_beside_reported_and_expect_fails_on_a_difference(
    small_data: Path, record: WeightsRecord, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_verb("evaluate", small_data, "--weights", "THREE", "--device", "cpu", "--expect", 0.01) == 0
    _, line = capsys.readouterr().out.splitlines()
    assert line.split() == "hardnet39ds THREE 9 66.67 24.28 66.67 the tests".split()  # noqa: SIM905
    for name, value in (("top1_error", 66.47), ("top5_error", 0.2)):
        changed = WeightsRecord(**{**vars(record), name: value})
        monkeypatch.setitem(CATALOG, (record.model, record.tag), changed)
        assert run_verb("evaluate", small_data, "--weights", "THREE", "--device", "cpu", "--expect") == 1
        assert "hardnet39ds THREE differs from what is reported by more than 0.1" in capsys.readouterr().err
        assert run_verb("evaluate", small_data, "--weights", "THREE", "--device", "cpu", "--expect", 0.3) == 0


def test_every_class_is_reported_with_what_it_is_taken_for(
    tmp_path: Path, small_data: Path, record: WeightsRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--weights", "THREE", "--device", "cpu", "--per-class", "--confusion")
    assert run_verb("evaluate", small_data, *arguments, tmp_path / "x.png") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["class_0", "3", "100.00", "3", "0", "0"] in lines
    assert ["class_2", "3", "0.00", "3", "0", "0"] in lines
    with Image.open(tmp_path / "x.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    assert run_verb("evaluate", small_data, *arguments, tmp_path / "x.svg", "--format", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert "top5_error" not in row  # of three classes
    assert (row["class_accuracies"], row["confusion"]) == ([100, 0, 0], [[3, 0, 0]] * 3)
    with pytest.raises(ValueError, match="takes one model, and a file with the suffix"):
        run_verb("evaluate", small_data, *arguments, tmp_path / "x.txt")


def test_the_sizes_of_the_test_can_be_chosen() -> None:
    base = Preprocessing(256, 224)
    assert resize(base, None, None) == base
    assert resize(base, 112, None) == Preprocessing(128, 112)
    assert resize(base, None, 1.0) == Preprocessing(224, 224)
    assert resize(base, 288, 0.9) == Preprocessing(320, 288)
    with pytest.raises(ValueError, match="crop_ratio must lie between 0 and 1, got 0"):
        resize(base, None, 0.0)


def test_the_errors_are_counted_as_they_are_defined(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=7, images=2)
    make_folder(tmp_path, classes=1, images=3)  # one more of class 0
    source = open_folder(tmp_path / "train")
    scores = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0])  # class 0 first, classes 0 to 4 among the first five
    ranks = Ranks(0, 1, torch.device("cpu"))

    def zeros(_: Image.Image) -> torch.Tensor:
        return torch.zeros(3, 2, 2)

    result = evaluate(lambda x: scores.expand(len(x), 7), source, zeros, ranks, batch_size=3)
    assert [(mistake.image, mistake.answer) for mistake in result.mistakes] == [(image, 0) for image in range(3, 15)]
    assert result.mistakes[0].probability == pytest.approx(float(scores.softmax(0)[0]))
    assert (result.images, result.top1, result.top5) == (15, 3, 11)
    assert result.top1_error == pytest.approx(100 * 12 / 15)
    assert result.top5_error == pytest.approx(100 * 4 / 15)
    labels = torch.tensor([0, *torch.arange(7).repeat_interleave(2).tolist()])
    expected = torch.nn.functional.cross_entropy(scores.repeat(15, 1), labels)
    assert result.loss == pytest.approx(float(expected))
    assert result.confusion == [[count, 0, 0, 0, 0, 0, 0] for count in (3, 2, 2, 2, 2, 2, 2)]
    assert result.class_accuracies == [100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert result.ece == pytest.approx(100 * (float(scores.softmax(0)[0]) - 3 / 15))
    with pytest.raises(hardnet.training.TrainingError, match="not finite"):
        evaluate(lambda x: scores.expand(len(x), 7) / 0, source, zeros, ranks)


def test_fast_decoding_of_an_evaluation_is_that_of_the_classifier(tmp_path: Path) -> None:
    path = tmp_path / "class" / "a.jpg"
    path.parent.mkdir()
    Image.effect_noise((301, 203), 80).convert("RGB").save(path)
    transform, inputs = Preprocessing(resize=36, crop=32), []

    def predict(images: torch.Tensor) -> torch.Tensor:
        inputs.append(images.clone())
        return torch.zeros(len(images), 1)

    for decode in ("exact", "fast"):
        evaluate(predict, open_folder(tmp_path), transform, Ranks(0, 1, torch.device("cpu")), decode=decode)
        assert torch.equal(inputs[-1][0], prepare(Item("a", path), transform, decode=decode))
    assert not torch.equal(*inputs)
