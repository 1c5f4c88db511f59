"""Checkpoints of few bytes that would take memory, time or the process, or let in what was not looked at."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from strange_checkpoints import TINY, legacy, load, refuse, saved, zipped
from torch import Tensor, nn

from hardnet import HarDNet, WeightsError
from hardnet.training import checkpoint_file as checkpoints
from hardnet.training.errors import TrainingError
from hardnet.weights.checkpoint import parse_checkpoint
from hardnet.weights.pickles import MAX_HASHED, MAX_NESTING
from hardnet.weights.reading import read_file, read_pickled


@pytest.fixture(scope="module")
def model() -> HarDNet:
    torch.manual_seed(0)
    return HarDNet(TINY, num_classes=2)


@pytest.fixture(scope="module")
def state(model: HarDNet) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


KEY = b"X\x10\x00\x00\x00base.0.norm.bias"
ORDERED = b"ccollections\nOrderedDict\n)R"


def number(value: object) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def name(path: str) -> bytes:
    return "c{}\n{}\n".format(*path.rsplit(".", 1)).encode()


def call(path: str, *arguments: bytes) -> bytes:
    return name(path) + b"(" + b"".join(arguments) + b"tR"


def tensor(elements: int, *, claimed: int = 16, view: bytes = b"") -> bytes:
    """One of so many elements, in a storage that is said to have some."""
    described = (number("storage"), name("torch.FloatStorage"), number("0"), number("cpu"), number(claimed), view)
    storage = b"(" + b"".join(described) + b"tQ"
    sizes = b"(" + number(elements) + b"t(" + number(1) + b"t"
    return call("torch._utils._rebuild_tensor_v2", storage, number(0), sizes, b"\x89", ORDERED)


def entry(value: bytes) -> bytes:
    """The pickle of a state dict with this value."""
    return b"\x80\x02}" + KEY + value + b"s."


# Each is a tuple of the one before, twice: to hash the last takes 2 ** 25 steps.
DOUBLING = b")" + b"\x85q\x00" + b"h\x00\x86q\x00" * 25
NESTED = b")" + b"\x85" * (MAX_NESTING + 50)


@pytest.mark.parametrize("form", [legacy, zipped])
def test_a_tuple_that_would_take_for_ever_to_hash(model: HarDNet, form: object) -> None:
    for pickled in (
        b"\x80\x02}" + DOUBLING + b"Ns.",
        b"\x80\x02}(" + DOUBLING + b"Nu.",
        entry(call("builtins.set", b"]" + DOUBLING + b"a")),
    ):
        refuse(model, form(pickled), match="a tuple of more than 1000000 values")  # type: ignore[operator]
    many = number(tuple(range(MAX_HASHED + 1)))
    for pickled in (
        b"\x80\x02}" + many + b"Ns.",
        b"\x80\x02}(" + many + b"Nu.",
        entry(call("collections.Counter", b"]" + many + b"a")),
        entry(call("torch.Size", many)),
    ):
        refuse(model, form(pickled), match="values where no more|a call that may hash")  # type: ignore[operator]


def test_lists_that_would_take_for_ever_to_print(model: HarDNet, tmp_path: Path) -> None:
    doubling = b"(]q\x00" + b"](h\x00h\x00eq\x00" * 30 + b"t"
    refuse(model, zipped(entry(doubling)), match="more than 10000000 values")
    path = tmp_path / "checkpoint.pt"
    content = b"".join(number(key) + b"N" for key in ("optimizer", "model")) + number("format") + doubling
    path.write_bytes(zipped(b"\x80\x02}(" + content + b"u."))
    with pytest.raises(TrainingError, match="more than 10000000 values"):
        checkpoints.load(path)
    refuse(model, zipped(entry(b"]q\x00h\x00a")), match="contains itself")


@pytest.mark.parametrize(
    "called",
    ["builtins.bytearray", "torch.FloatTensor", "torch.Tensor", "torch.storage.UntypedStorage", "torch.ByteStorage"],
)
def test_calls_that_make_arrays_of_any_size(model: HarDNet, called: str) -> None:
    size = number(1000)
    typed = (name("torch.Tensor"), b"(" + size + b"t", b"N")
    for pickled in (
        entry(call(called, size)),
        entry(name(called) + b"(" + size + b"t\x81"),
        entry(call("torch._tensor._rebuild_from_type_v2", name(called), *typed)),
        entry(call("torch._tensor._rebuild_from_type_v2", b"N", *typed)),
    ):
        for form in (legacy, zipped):
            refuse(model, form(pickled), match=r"a call of .*\.(bytearray|\w+Tensor|Tensor|\w+Storage)|has no name")
    refuse(model, zipped(entry(name("collections.OrderedDict") + b"]R")), match="with what is no tuple")


def test_storages_larger_than_the_file(model: HarDNet) -> None:
    refuse(model, zipped(entry(tensor(20, claimed=20))), match="the storage 0 is larger than its record")
    assert parse_checkpoint(zipped(entry(tensor(16))), "x.pth", TINY)["base.0.norm.bias"].shape == (16,)
    for claimed, elements in ((100_000, 100_000), (16, 100_000)):  # the second makes torch enlarge the storage
        content = legacy(entry(tensor(elements, claimed=claimed, view=b"N")))
        refuse(model, content, match="tensors that are larger than the file")
    refuse(model, zipped(entry(b"NQ")), match="described in another way")
    refuse(model, zipped(entry(b"(" + number("storage") + b"NNNNtQ")), match="described in another way")


def test_what_the_file_gives_a_tensor_or_dict_in_place_of_its_methods(model: HarDNet) -> None:
    attribute = b"}" + number("isfinite") + name("torch.nn.parameter.Parameter") + b"s"
    value = call("torch._utils._rebuild_parameter_with_state", tensor(2), b"\x89", ORDERED, attribute)
    not_numbers = struct.pack("<16f", *[float("nan")] * 16)
    refuse(model, zipped(entry(value), storage=not_numbers), match="NaN or infinite")
    values = b"\x80\x02" + ORDERED + KEY + b"K\x01s}" + number("values") + name("collections.OrderedDict") + b"sb."
    refuse(model, zipped(values), match="has the entries base.0.norm.bias")


def test_keys_and_reasons_are_shown_in_one_line(model: HarDNet) -> None:
    for content in (
        saved({"\x1b[2J\n": torch.zeros(1)}),
        saved({torch.zeros(1): torch.zeros(1), "\x1b\x07": torch.zeros(1)}),
        zipped(entry(name("os.\x1b[2J") + b")R")),
        saved({(1, 2): 3}),
    ):
        with pytest.raises(WeightsError) as caught:
            load(model, content)
        assert str(caught.value).isprintable()
        assert "tensor(" not in str(caught.value)


def two_directories(hidden: bytes, shown: bytes) -> bytes:
    """An archive in which Python's reader finds the members of ``shown``, and torch's those of ``hidden``."""
    starts = [zipfile.ZipFile(io.BytesIO(archive)).start_dir for archive in (hidden, shown)]
    size = len(shown) - 22 - starts[1]
    assert len(hidden) - 22 - starts[0] == size
    moved, directory = len(hidden) - 22, bytearray(shown[starts[1] : -22])
    before = len(hidden) - 22 + starts[1] - starts[0]  # what Python adds to every place, as it thinks of a prefix
    position = 0
    while position < len(directory):
        lengths = struct.unpack_from("<HHH", directory, position + 28)
        (place,) = struct.unpack_from("<I", directory, position + 42)
        struct.pack_into("<I", directory, position + 42, (place + moved - before) % 2**32)
        position += 46 + sum(lengths)
    end = shown[-22:-6] + struct.pack("<IH", starts[0], 0)
    return hidden[:-22] + shown[: starts[1]] + bytes(directory) + end


def test_archives_that_two_readers_read_differently(model: HarDNet, state: dict[str, Tensor]) -> None:
    pickled = b"\x80\x02}" + NESTED + b"Ns."
    upper = io.BytesIO()
    with zipfile.ZipFile(upper, "w") as archive:
        for member, content in (("data.PKL", pickled), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{member}", content)
    refuse(model, upper.getvalue(), match="tuples nested")  # torch's reader takes it for data.pkl
    other = "an archive of which readers may see different members"
    hidden = two_directories(zipped(pickled), zipped(b"\x80\x02}."))
    with zipfile.ZipFile(io.BytesIO(hidden)) as archive:
        assert archive.read("archive/data.pkl") == b"\x80\x02}."
    refuse(model, hidden, match=other)
    good = zipped(b"\x80\x02}.")
    refuse(model, good + b"comment")
    refuse(model, good[:-2] + b"\x07\x00comment", match=other)
    wide = io.BytesIO()
    with zipfile.ZipFile(wide, "w") as archive:
        info = zipfile.ZipInfo("archive/data.pkl")
        info.extra = struct.pack("<HHQ", 1, 8, 1 << 40)
        archive.writestr(info, b"\x80\x02}.")
    refuse(model, wide.getvalue(), match=other)
    new = saved(state)
    assert new[-42:-38] == b"PK\x06\x07"
    for where in (-34, -98 + 48):  # of the 64-bit record, and in it the place of the directory
        moved = new[:where] + b"\x01" + new[where + 1 :]
        refuse(model, moved, match=f"{other}|cannot be read")


def test_an_archive_packed_by_another_tool_is_read(model: HarDNet, state: dict[str, Tensor]) -> None:
    plain, packed = zipfile.ZipFile(io.BytesIO(saved(state))), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in plain.namelist():
            info = zipfile.ZipInfo(member)
            info.extra = struct.pack("<HHBI", 0x5455, 5, 1, 0)  # the time, as Info-ZIP writes it
            archive.writestr(info, plain.read(member), zipfile.ZIP_DEFLATED)
    load(model, packed.getvalue())


def test_what_checkpoints_hold_beside_the_weights_is_read(state: dict[str, Tensor]) -> None:
    betas, shared = (0.9, 0.999), torch.ones(3)
    parameter = nn.Parameter(torch.ones(2))
    parameter.note = "an attribute"  # type: ignore[attr-defined]
    ordered = collections.OrderedDict(state)
    ordered._metadata = {"version": 2}  # type: ignore[attr-defined]
    content = {
        "state_dict": ordered, "parameter": parameter, "half": torch.ones(2, dtype=torch.bfloat16),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"betas": betas}, {"betas": betas}]},
        "classes": tuple(f"class {n}" for n in range(21_000)), "size": torch.Size([1, 2]),
        "dtype": torch.float16, "bytes": b"\0\xff", "set": {1, 2}, "milestones": collections.Counter([30, 60]),
        "random": random.getstate(), "shared": [shared, shared[:2], shared], "flags": [True, None, 1.5, 2**70, "x"],
        "complex": 1j, "device": torch.device("cpu"), "view": torch.arange(10)[::2], "keys": {(1, 2): 3},
        "best": [(1, 2), (3, 4)],
    }  # fmt: skip
    for new in (True, False):
        found = read_pickled(saved(content, new), "x.pth")
        assert type(found["state_dict"]) is dict
        assert found["state_dict"].keys() == state.keys()
        assert found["parameter"].tolist() == [1.0, 1.0]
        assert found["shared"][0] is found["shared"][2]
        assert found["view"].tolist() == [0, 2, 4, 6, 8]
        for key in content.keys() - {"state_dict", "parameter", "half", "shared", "view"}:
            assert found[key] == content[key]


@pytest.mark.parametrize(
    ("kind", "shape", "size"),
    [("F8_E8M0", [8], 8), ("F4", [16], 8), ("F32", [0, 2**63], 0), ("F32", [0, 2**62, 2**62], 0), ("F32", [1] * 80, 4)],
)
def test_safetensors_that_torch_has_no_tensors_for(
    model: HarDNet,
    kind: str,
    shape: list[int],
    size: int,
) -> None:
    header = json.dumps({"base.0.norm.bias": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
    refuse(model, struct.pack("<Q", len(header)) + header + bytes(size), origin="x.safetensors")


@pytest.mark.skipif(os.name != "posix", reason="devices and FIFOs as POSIX has them")
def test_only_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    for path in ("/dev/zero", tmp_path / "pipe.pth"):  # and it does not hang, or read for ever
        with pytest.raises(WeightsError, match="cannot be read: Not a regular file"):
            read_file(path)
    with pytest.raises(WeightsError, match="cannot be read: Is a directory"):
        read_file(tmp_path)
    with pytest.raises(WeightsError, match=r"~nobody-of-this-name/x\.pth: no such file"):
        read_file("~nobody-of-this-name/x.pth")
