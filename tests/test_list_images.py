"""Finding the image files of a folder."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path

import pytest

from hardnet.images.read import list_images
from hardnet.utils.errors import ImageError


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in list_images(folder)]


def test_listing_is_recursive_sorted_and_keeps_to_images(tmp_path: Path) -> None:
    for name in (
        "b.jpg", "a.PNG", "c.JpEg", "d.webp", "e.mpo", "f.tif", "sub/z.gif", "sub/deep/y.bmp", "aa/x.jpg",
        "notes.txt", "README", "data.npy", "page.pdf", "film.mpg", "table.h5",
        ".DS_Store", "._b.jpg", ".hidden/x.jpg", "sub/._z.gif",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == [
        "a.PNG", "aa/x.jpg", "b.jpg", "c.JpEg", "d.webp", "e.mpo", "f.tif", "sub/deep/y.bmp", "sub/z.gif",
    ]  # fmt: skip
    assert list(list_images(str(tmp_path))) == list(list_images(tmp_path))


def test_listing_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "set" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.jpg").touch()
    (tmp_path / "set" / "near.jpg").touch()
    (tmp_path / "set" / "sub" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "one.jpg").symlink_to(tmp_path / "set" / "near.jpg")
    assert names(tmp_path / "set") == ["again/far.jpg", "near.jpg", "one.jpg"]


def test_listing_names_what_cannot_be_read_instead_of_dropping_it(tmp_path: Path) -> None:
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg" / "inside.jpg").touch()
    assert names(tmp_path) == ["dangling.jpg", "folder.jpg/inside.jpg", "pipe.jpg"]


def test_an_unreadable_subfolder_is_skipped_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "locked", "z"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").touch()
    original = Path.iterdir

    def iterdir(self: Path) -> object:
        if self.name == "locked":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert names(tmp_path) == ["a/x.jpg", "z/x.jpg"]
    assert f"{tmp_path / 'locked'}: skipped, cannot be listed: Permission denied" in caplog.text


def test_listing_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone: cannot be listed: No such file"):
        list_images(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match=r"file: cannot be listed: Not a directory"):
        list_images(tmp_path / "file")


def test_folders_may_be_nested_deeper_than_pythons_stack(tmp_path: Path) -> None:
    depth = 200  # as deep as the 1,000 that Python allows would be a folder that pytest cannot remove
    folder = tmp_path.joinpath(*["d"] * depth)
    folder.mkdir(parents=True)
    (folder / "x.png").write_bytes(b"")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + depth)
    try:
        assert list(list_images(tmp_path)) == [folder / "x.png"]
    finally:
        sys.setrecursionlimit(limit)
