"""The messages that the guide explains are those that a user meets."""

from __future__ import annotations

import logging
import re
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from offline_copy import REPO, read_page
from published import publish

import hardnet
import hubconf
from hardnet.images.read import load_image
from hardnet.weights.catalog import Digest


def test_the_messages_are_what_a_user_meets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each fragment that the guide lists, and nothing else, is provoked."""
    caplog.set_level(logging.INFO, logger="hardnet")
    table = read_page("docs/guide.md").split("| the message has |", 1)[1].split("\n\n", 1)[0]
    listed = re.findall(r"^\| `(.*?)`( \(log\))? \|", table, re.MULTILINE)
    assert [fragment for fragment, _ in listed] == list(Provoked(tmp_path, monkeypatch).calls)
    for fragment, logged in listed:
        caplog.clear()
        with pytest.MonkeyPatch.context() as patch:
            call = Provoked(tmp_path, patch).calls[fragment]
            if logged:
                call()
                assert fragment in caplog.text
            else:
                with pytest.raises((ValueError, TypeError, RuntimeError, ImportError)) as caught:
                    call()
                assert fragment in str(caught.value)


class Provoked:
    """Fragments of messages, and what provokes them."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        model = hardnet.create_model("hardnet39ds")
        image = torch.rand(1, 3, 64, 64)
        shipped = "FASHION_MNIST"
        self.calls: dict[str, Callable[[], object]] = {
            "could not be downloaded from any source": self._offline,
            "did you mean": lambda: hardnet.create_model("hardnet-68"),
            "the head is new and untrained": lambda: hardnet.create_model(
                "hardnet39ds", weights=shipped, num_classes=3
            ),
            "does not fit": lambda: self._load(model.state_dict(), "hardnet68ds"),
            "save the state dict alone": lambda: self._load(model, "hardnet39ds"),
            "is an HTML page": lambda: self._load(b"<!DOCTYPE html><html></html>", "hardnet39ds"),
            "was checked against a weak digest": self._weak,
            "cannot be written": self._no_cache,
            "add the batch dimension": lambda: model(image[0]),
            "the channels are last": lambda: model(image.permute(0, 2, 3, 1)),
            "takes floating-point images": lambda: model(image.byte()),
            "no images in this folder": lambda: hardnet.Classifier(model).predict(self._folder()),
            "is not an image in a format that Pillow decodes": lambda: load_image(self._file("x.jpg", b"text")),
            "is too large": lambda: load_image(REPO / "images" / "cat.jpg", max_pixels=1000),
            "cannot be used here": lambda: hardnet.Classifier(model, device="cuda:99"),
            "labels, but the model tells": lambda: hardnet.Classifier(model, labels=["cat"]),
            'pip install "hardnet[': self._no_package,
            "another module named 'hardnet'": self._other_module,
            "unexpected keyword argument": lambda: hardnet.hardnet68(arch=68),  # type: ignore[call-overload]
            "Expected more than 1 value per channel": lambda: model.train()(image[:, :, :32, :32]),
        }

    def _offline(self) -> None:
        self.patch.setenv("HARDNET_OFFLINE", "1")
        hardnet.create_model("hardnet39ds", weights="IMAGENET1K_V1")

    def _file(self, name: str, content: bytes) -> Path:
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def _folder(self) -> Path:
        (self.folder / "empty").mkdir()
        return self.folder / "empty"

    def _load(self, content: object, name: str) -> None:
        path = self.folder / "file.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        hardnet.create_model(name, weights=path)

    def _weak(self) -> None:
        record = publish(self.patch, self.folder, "hardnet39ds")
        source = record.sources[0]
        weak = Digest("sha256-prefix", source.digest.value[:8])
        hardnet.create_model("hardnet39ds", weights=replace(record, sources=(replace(source, digest=weak),)))

    def _no_cache(self) -> None:
        self.patch.setenv("TORCH_HOME", str(self._file("not a folder", b"")))
        hardnet.create_model("hardnet39ds", weights="IMAGENET1K_V1")  # ends before it asks the network

    def _no_package(self) -> None:
        self.patch.setitem(sys.modules, "safetensors", None)
        hardnet.create_model("hardnet39ds", weights=self._file("x.safetensors", b""))

    def _other_module(self) -> None:
        self.patch.setitem(sys.modules, "hardnet", types.ModuleType("hardnet"))
        hubconf._check_package()
