"""Ray Data on this machine: the rows of every kind of source, faults, and the results of one process."""

import io
import os
import signal
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pictures import encoded, noise

import hardnet
from hardnet.cli import main

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")
fs = pytest.importorskip("pyarrow.fs")
stages = pytest.importorskip("hardnet.ray")
parquet = pytest.importorskip("pyarrow.parquet")
OPTIONS = ["--model", "hardnet39ds", "--weights", "FASHION_MNIST"]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    stages.start()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors cannot import this file
    yield
    ray.shutdown()


def png(number: int) -> bytes:
    return encoded(noise(8, 6, number).resize((80, 60)))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of files, one of them broken, two shards, one of them truncated, and a Parquet file."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(png(number) if number != 3 else b"no picture")
    for shard in ("a", "b"):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number in range(4):
                for name, content in ((f"{number}.png", png(number)), (f"{number}.cls", b"3")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            end = archive.offset
        os.truncate(folder / f"{shard}.tar", end if shard == "b" else end + 10240)  # b: without its end
    images = [{"bytes": png(number), "path": "x"} for number in range(3)]
    parquet.write_table(pa.table({"label": [0, 1, 2, 3], "image": [*images, None]}), folder / "c.parquet")
    return folder


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    results = parquet.read_table(folder).to_pylist()
    assert len({row["source"] for row in results}) == len(results)
    return {row["source"]: row for row in results}


@pytest.mark.parametrize("verb", ["predict", "extract"])
def test_every_source_has_the_results_of_one_process(verb: str, sources: Path, tmp_path: Path) -> None:
    gone, output = tmp_path / "gone.tar", tmp_path / "out"
    assert main([verb, str(sources), str(gone), "--output", str(output), "--on", "ray", *OPTIONS]) == 1
    results = rows(output)
    names = [f"{folder}{number}.png" for folder in ("", "a.tar/", "b.tar/") for number in range(4)]
    names += ["4.png", "b.tar", *(f"c.parquet/{number}" for number in range(4))]
    assert set(results) == {str(gone), *(str(sources / name) for name in names)}
    errors = {str(Path(name).relative_to(tmp_path)): row["error"] for name, row in results.items() if row["error"]}
    assert set(errors) == {"gone.tar", "in/3.png", "in/b.tar", "in/c.parquet/3"}
    assert "truncated after 4 images" in errors["in/b.tar"]
    assert "no such file" in errors["gone.tar"].lower()
    assert "is not an image" in errors["in/3.png"]
    runner = {"predict": hardnet.Classifier, "extract": hardnet.Extractor}[verb]("hardnet39ds", weights="FASHION_MNIST")
    for number in range(3):
        [expected] = runner.stream([sources / f"{number}.png"])
        for name in (f"{number}.png", f"a.tar/{number}.png", f"b.tar/{number}.png", f"c.parquet/{number}"):
            row = results[str(sources / name)]
            if verb == "extract":
                assert row["embedding"] == pytest.approx(expected.vector.tolist(), abs=1e-5)
            else:
                assert [p["label"] for p in row["predictions"]] == [p.label for p in expected.predictions]
                assert row["predictions"][0]["probability"] == pytest.approx(expected.top.probability, abs=1e-5)
    assert main([verb, str(sources), "--output", str(output), "--on", "ray", *OPTIONS]) == 4  # not empty


class Dying(stages._Stage):  # type: ignore[name-defined, misc]
    """An actor that is killed once, when it has computed its block."""

    def __call__(self, table: Any) -> Any:
        results = super().__call__(table)
        marker = Path(table["marker"][0].as_py())
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return results


def test_stages_of_a_pipeline_and_a_killed_actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_Stage", Dying)
    table = {"id": range(200), "jpg": [png(number) for number in range(200)], "marker": [str(tmp_path / "x")] * 200}
    dataset = ray.data.from_arrow([pa.table(table).slice(start, 20) for start in range(0, 200, 20)])
    results = stages.embed(dataset, "hardnet39ds", weights="FASHION_MNIST", column="jpg").take_all()
    assert (tmp_path / "x").exists()
    assert sorted(row["id"] for row in results) == list(range(200))
    assert all(len(row["embedding"]) == 1024 and row["error"] is None and "jpg" not in row for row in results)


def test_file_systems_of_pyarrow(sources: Path) -> None:
    files = fs.SubTreeFileSystem(str(sources.parent), fs.LocalFileSystem())
    images = stages.read(["in"], filesystem=files).take_all()
    assert {row["source"] for row in images if row["bytes"]} >= {"in/0.png", "in/a.tar/0.png", "in/c.parquet/0"}
    images = stages.read([f"file://{sources}"]).take_all()
    errors = {row["source"] for row in images if row["error"]}
    assert errors == {f"file://{sources}/{name}" for name in ("b.tar", "c.parquet/3")}


@pytest.mark.parametrize("options", [["--on", "dask"], ["--on", "ray", "--resume"]])
def test_wrong_use_is_one_line(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path), "--output", str(tmp_path / "out"), *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_address_without_a_cluster_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(ValueError, match=rf"cannot be reached at {address}: Connection refused"):
            stages.start(address)
