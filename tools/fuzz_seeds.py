"""Inputs to begin with: one good specimen of each kind, and some that are known to be dangerous."""

from __future__ import annotations

import io
import pickle
import stat
import struct
import zipfile
from collections.abc import Callable

import torch
from PIL import Image

from tools.fuzz_command_line import WORDS
from tools.fuzz_targets import GOOD, tiny_state


def _zip(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as written:
        for name, content in members:
            written.writestr(name, content)
    return buffer.getvalue()


def _archives() -> list[bytes]:
    link = zipfile.ZipInfo("w.pth")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return [
        GOOD,
        _zip(("w.pth", GOOD)),
        _zip(("w.pth", GOOD), method=zipfile.ZIP_STORED),
        _zip(("w.pth", bytes(3 << 20))),
        _zip(("../w.pth", GOOD)),
        _zip(("a.pth", GOOD), ("b.pth", GOOD)),
        _zip((link, b"/etc/passwd")),
        b"<!DOCTYPE html><html></html>",
        b"PK\x05\x06" + bytes(18),
        b"PK\x06\x07" + bytes(16) + b"PK\x05\x06" + b"\xff" * 18,
    ]


class _Gadget:
    def __init__(self, module: str, name: str, *arguments: object) -> None:
        self.parts = module, name, arguments

    def pickled(self) -> bytes:
        """A pickle of protocol 2 that calls the function when it is read without precautions."""
        module, name, arguments = self.parts
        call = pickle.dumps(arguments, 2)[2:-1]
        return b"\x80\x02c" + f"{module}\n{name}\n".encode() + call + b"R."


def _checkpoints() -> list[bytes]:
    state = dict(list(tiny_state().items())[:3])
    new, legacy, wrapped = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(state, new)
    torch.save(tiny_state(), legacy, _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state, "epoch": 3}, wrapped, _use_new_zipfile_serialization=False)
    pickled = zipfile.ZipFile(io.BytesIO(new.getvalue())).read("archive/data.pkl")
    header = b'{"base.0.norm.bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    gadgets = [
        _Gadget("os", "system", "true"),
        _Gadget("builtins", "eval", "1"),
        _Gadget("torch.hub", "load", "x", "y"),
    ]
    return [
        b"z" + new.getvalue(),
        b"z" + legacy.getvalue(),
        b"z" + wrapped.getvalue(),
        b"p" + pickled,
        b"s" + struct.pack("<Q", len(header)) + header + bytes(8),
        b"p\x80\x02})q\x00" + b"h\x00\x86q\x00" * 20 + b"Ns.",  # tuples of twice the one before
        b"p\x80\x02}]q\x00h\x00a" + b"Ns.",
        b"p\x80\x02}cbuiltins\nbytearray\nK\x09\x85RNs.",
        *(form + gadget.pickled() for gadget in gadgets for form in (b"z", b"p")),
    ]


def _images() -> list[bytes]:
    picture = Image.radial_gradient("L").resize((12, 9))
    forms = [
        ("PNG", "RGB"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "1"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P"),
        ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "F"), ("WEBP", "RGBA"), ("PPM", "L"), ("TGA", "RGBA"),
        ("ICO", "RGBA"), ("JPEG2000", "RGB"), ("PCX", "P"), ("SGI", "RGB"), ("DDS", "RGBA"), ("XBM", "1"),
        ("AVIF", "RGB"), ("IM", "RGB"), ("MSP", "1"), ("BLP", "P"), ("SPIDER", "F"), ("ICNS", "RGBA"), ("QOI", "RGB"),
    ]  # fmt: skip
    stored = []
    for form, mode in forms:
        buffer = io.BytesIO()
        given = picture.convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
        try:
            given.save(buffer, form)
        except (OSError, ValueError, KeyError):  # this build of Pillow does not write it
            continue
        stored.append(buffer.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    picture.save(turned, "JPEG", exif=exif)
    return [*stored, turned.getvalue()]


def _keys() -> list[bytes]:
    return [
        bytes([which, *edit]) for which in (0, 1) for edit in ((), (3, 0), (9, 7, 1), (5, 5, 3), (0, 0, 1, 2), (7, 1))
    ]


def _command_lines() -> list[bytes]:
    lines = [
        "predict good.png", "predict good.png bad.png folder --format json", "predict folder --topk 1 --format csv",
        "predict good.png --labels labels.txt", "predict good.png --model hardnet39ds --weights bad.pth",
        "extract folder --output out.npz --weights FASHION_MNIST", "info", "info hardnet68 --size 32x64",
        "weights list", "weights verify bad.pth", "weights path hardnet68", "weights download hardnet68",
        "train missing.png --output out.csv", "evaluate folder --model hardnet39ds", "--version", "--help",
        "predict good.png --engine openvino", "predict good.png --precision int8 --calibration folder",
        "export hardnet39ds --weights FASHION_MNIST", "export hardnet39ds --weights FASHION_MNIST --size 999999",
        "export hardnet39ds --weights FASHION_MNIST --format aoti --output x.pt2 --size 224 --uint8-input",
        "benchmark", "benchmark hardnet39ds --engines eager torch --precisions fp32 --batch-sizes 1 --sizes 32x64",
        "benchmark --no-peers --rounds 1 --turn-seconds 0.5 --threads 1 --device cpu --json out.csv --plot x.pt",
        "benchmark --end-to-end --images 1 --photographs folder", "demo", "demo --port 70000", "demo --host 127.0.0.1",
    ]  # fmt: skip
    return [bytes(WORDS.index(word) for word in line.split()) for line in lines]


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "archive": _archives,
    "keys": _keys,
    "checkpoint": _checkpoints,
    "image": _images,
    "cli": _command_lines,
}
