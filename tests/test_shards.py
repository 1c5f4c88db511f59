"""Images of shards and Parquet files: an odd member is left out or becomes a row with its error; the rest is read."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from pictures import encoded, noise

from hardnet import ray as stages
from hardnet.images import shards
from hardnet.images.shards import list_files, read_files

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


PNG = encoded(noise(8, 8))


def rows(*paths: Path, column: str | None = None) -> dict[str, str]:
    """The sources within each path, with their errors; empty where there is an image."""
    contents = list(read_files(iter(list(list_files(map(str, paths)))), None, column))
    assert all((content is None) == (error is not None) for _, content, error in contents)
    return {Path(name).name: error or "" for name, _, error in contents}


@pytest.mark.parametrize("kind", ["", "gz", "bz2", "xz"])
def test_odd_members_do_not_end_a_shard(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_BYTES", 2000)
    path = tmp_path / (f"s.tar.{kind}" if kind else "s.tar")
    with tarfile.open(path, f"w:{kind}") as archive:
        for name, member_type, content in (
            ("0.png", tarfile.REGTYPE, PNG),
            ("soft.png", tarfile.SYMTYPE, b""),
            ("hard.png", tarfile.LNKTYPE, b""),
            ("device.png", tarfile.CHRTYPE, b""),
            ("pipe.png", tarfile.FIFOTYPE, b""),
            ("large.png", tarfile.REGTYPE, bytes(2001)),
            ("1.png", tarfile.REGTYPE, PNG),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = member_type, len(content), "0.png" if not content else ""
            archive.addfile(member, io.BytesIO(content))
    large = "is too large: 2,001 bytes, the limit is 2,000"
    assert rows(path) == {"0.png": "", "large.png": f"{path}/large.png: {large}", "1.png": ""}
    assert len(rows(tmp_path)) == 3
    single = tmp_path / "single.png"
    single.write_bytes(bytes(2001))
    assert rows(single) == {"single.png": f"{single}: {large}"}


@pytest.mark.parametrize(
    ("values", "column", "error"),
    [
        (pa.array([list(PNG)] * 2, pa.list_(pa.uint8())), None, "there is no column of bytes"),
        (pa.array(["a", "b"]), "image", "there is no such column of bytes"),
        (pa.array([{"bytes": "a"}, {"bytes": "b"}]), None, "there is no column of bytes"),
        (pa.array([{"bytes": list(PNG)}] * 2), "image", "there is no such column of bytes"),
        (pa.array([PNG, bytes(2001)]), None, "1: is too large: 2,001 bytes"),
        (pa.array([PNG, None], pa.large_binary()), None, "1: there is no image"),
    ],
)
def test_columns_and_cells_of_parquet(
    tmp_path: Path, values: Any, column: str | None, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MAX_BYTES", 2000)
    parquet.write_table(pa.table({"label": [0, 1], "image": values}), tmp_path / "t.parquet")
    contents = rows(tmp_path / "t.parquet", column=column)
    assert error in "".join(contents.values())
    assert ("0" in contents) == error.startswith("1")


def test_an_interrupted_job_says_what_is_complete(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Interrupted:
        def write_parquet(self, folder: str, **_: Any) -> None:
            parquet.write_table(pa.table({"source": ["a", "b"]}), f"{folder}/0.parquet")
            Path(folder, "1.parquet").write_bytes(Path(folder, "0.parquet").read_bytes()[:-9])
            raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        stages.write(Interrupted(), str(tmp_path / "out"))
    assert caplog.messages == [f"interrupted: {tmp_path / 'out'} holds 1 complete files with 2 images"]


def test_names_are_sources_as_they_are(tmp_path: Path) -> None:
    names = [b"a\nb.png", b"caf\xe9.png", b"large.png"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(PNG)
    sources = [name for name, content, _ in read_files(list_files([str(tmp_path)]), None, None) if content]
    assert [Path(source).name for source in sources] == ["a\nb.png", "caf\\xe9.png", "large.png"]
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name in names:
            archive.add(tmp_path / os.fsdecode(name), os.fsdecode(name))
    assert list(rows(tmp_path / "s.tar")) == ["a\nb.png", "caf\\xe9.png", "large.png"]
