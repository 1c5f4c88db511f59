"""Release archives: the one good shape, and every other one refused."""

from __future__ import annotations

import io
import random
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from hardnet.utils.errors import WeightsError
from hardnet.weights import archive
from hardnet.weights.archive import ArchiveError, unpack_archive

CONTENT = b"\x80\x02" + random.Random(0).randbytes(10_000)  # noqa: S311  test data


def pack(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as opened:
        for name, content in members:
            opened.writestr(name, content)
    return buffer.getvalue()


def info(name: str, mode: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = mode << 16
    return member


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_the_single_file_comes_out(method: int, tmp_path: Path) -> None:
    packed = pack(("hardnet.pth", CONTENT), method=method)
    assert unpack_archive(packed) == CONTENT
    (tmp_path / "x.pth.zip").write_bytes(packed)
    assert unpack_archive(tmp_path / "x.pth.zip") == CONTENT


def test_a_file_that_is_itself_a_zip_comes_out_whole() -> None:
    """A torch file is a zip of many members; stored without compression, they stand in the archive's bytes."""
    inner = pack(*((f"archive/data/{n}", b"x" * n) for n in range(500)), method=zipfile.ZIP_STORED)
    assert unpack_archive(pack(("hardnet.pth", inner), method=zipfile.ZIP_STORED)) == inner
    with pytest.raises(ArchiveError, match="holds 500 members"):
        unpack_archive(inner)


@pytest.mark.parametrize(
    "name",
    [
        "../hardnet.pth",
        "/etc/hardnet.pth",
        "folder/hardnet.pth",
        "C:hardnet.pth",
        "..\\hardnet.pth",
        "hardnet.txt",
        "hardnet.pth/",
        "hardnet",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ArchiveError, match=r"expected one plain name ending in \.pth"):
        unpack_archive(pack((name, CONTENT)))


def test_a_name_with_a_hidden_end_is_refused() -> None:
    packed = pack(("hardnet.pth#evil", CONTENT)).replace(b"hardnet.pth#evil", b"hardnet.pth\0evil")
    with pytest.raises(ArchiveError):
        unpack_archive(packed)
    packed = pack(("a.pth#b.pth", CONTENT)).replace(b"a.pth#b.pth", b"a.pth\0b.pth")
    with pytest.raises(ArchiveError, match="expected one plain name"):
        unpack_archive(packed)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_several_members_and_none_are_refused() -> None:
    with pytest.raises(ArchiveError, match=r"2 members \('a.pth', 'b.pth'"):
        unpack_archive(pack(("a.pth", CONTENT), ("b.pth", CONTENT)))
    with pytest.raises(ArchiveError, match="2 members"):
        unpack_archive(pack(("a.pth", CONTENT), ("a.pth", CONTENT)))
    with pytest.raises(ArchiveError, match="2 members"):
        unpack_archive(pack(("folder/", b""), ("a.pth", CONTENT)))
    with pytest.raises(ArchiveError, match="0 members"):
        unpack_archive(pack())
    with pytest.raises(ArchiveError, match="2 members") as caught:
        unpack_archive(pack(("a" * 60_000, b""), ("b" * 60_000, b"")))
    assert len(str(caught.value)) <= 1000


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR])
def test_links_folders_and_devices_are_refused(kind: int) -> None:
    with pytest.raises(ArchiveError, match="not a regular file"):
        unpack_archive(pack((info("hardnet.pth", kind | 0o777), b"/etc/passwd")))
    assert unpack_archive(pack((info("hardnet.pth", stat.S_IFREG | 0o644), CONTENT))) == CONTENT


def test_encrypted_members_are_refused() -> None:
    packed = bytearray(pack(("hardnet.pth", CONTENT)))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        packed[packed.index(signature) + offset] |= 1
    with pytest.raises(ArchiveError, match="encrypted"):
        unpack_archive(bytes(packed))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_methods_are_refused(method: int) -> None:
    with pytest.raises(ArchiveError, match="unusual method"):
        unpack_archive(pack(("hardnet.pth", CONTENT), method=method))


def test_a_declared_bomb_is_refused_before_it_goes_off(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = pack(("hardnet.pth", bytes(5_000_000)))
    assert len(bomb) < 10_000
    assert len(unpack_archive(bomb, max_bytes=5_000_000)) == 5_000_000
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(ArchiveError, match="unpacks to 5000000 bytes, the limit is 4999999"):
        unpack_archive(bomb, max_bytes=4_999_999)


@pytest.mark.parametrize("declared", [10, 4_999_999])
def test_a_bomb_that_lies_about_its_size_is_refused(declared: int) -> None:
    bomb = bytearray(pack(("hardnet.pth", bytes(5_000_000))))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", bomb, bomb.index(signature) + offset, declared)
    with pytest.raises(ArchiveError):
        unpack_archive(bytes(bomb), max_bytes=1_000_000)
    with pytest.raises(ArchiveError, match="damaged"):
        unpack_archive(bytes(bomb))


def test_a_stream_that_outgrows_the_limit_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the directory says and zipfile believes, no more than the limit is kept."""
    served = []

    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            served.append(size)
            return bytes(size)

    packed = pack(("hardnet.pth", CONTENT))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: Endless())
    with pytest.raises(ArchiveError, match="unpacks to more than 20000000 bytes"):
        unpack_archive(packed, max_bytes=20_000_000)
    assert sum(served) < 30_000_000


def test_a_stream_that_ends_early_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(("hardnet.pth", CONTENT))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: io.BytesIO(CONTENT[:-1]))
    with pytest.raises(ArchiveError, match="ends after 10001 of 10002 bytes"):
        unpack_archive(packed)


def test_an_archive_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    packed = pack(("hardnet.pth", CONTENT), method=zipfile.ZIP_STORED)
    (tmp_path / "x.zip").write_bytes(packed)
    for given in (packed, tmp_path / "x.zip"):
        with pytest.raises(ArchiveError, match="the archive is larger than 10050 bytes"):
            unpack_archive(given, max_bytes=10_050)


def test_a_directory_of_too_many_entries_is_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_MAX_ENTRIES", 50)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    buffer = b"PK\x03\x04" + b"PK\x01\x02" * 51
    with pytest.raises(ArchiveError, match="too many members"):
        unpack_archive(buffer)


def test_damage_anywhere_is_an_error_and_nothing_else() -> None:
    """Every byte of a small archive, flipped: either refused, or the content is what it was."""
    packed = pack(("hardnet.pth", CONTENT[:200]))
    refused = 0
    for position in range(len(packed)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(packed)
            damaged[position] ^= flip
            try:
                assert unpack_archive(bytes(damaged), max_bytes=1_000_000) == CONTENT[:200]
            except ArchiveError:
                refused += 1
    assert refused > len(packed)
    for length in range(len(packed)):
        with pytest.raises(ArchiveError):
            unpack_archive(packed[:length])


@pytest.mark.parametrize("error", [struct.error("short"), OverflowError("far"), OSError("seek"), EOFError("end")])
def test_whatever_zipfile_raises_is_an_error_of_the_archive(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Which of these damage leads to differs between the versions of Python."""

    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(zipfile, "ZipFile", fail)
    with pytest.raises(ArchiveError, match=f"damaged: {error}"):
        unpack_archive(CONTENT)


def test_what_is_no_archive_is_an_error(tmp_path: Path) -> None:
    for junk in (b"", b"PK\x03\x04", CONTENT, b"<html></html>"):
        with pytest.raises(WeightsError, match="damaged"):
            unpack_archive(junk)
    with pytest.raises(WeightsError, match="cannot be read"):
        unpack_archive(tmp_path / "none.zip")
