"""Checkpoints made on the spot that stand in for the catalogue's, so that the verified loader has its way offline."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import golden_state

from hardnet.weights.catalog import CATALOG, Digest, Source, WeightsRecord


def publish(monkeypatch: pytest.MonkeyPatch, folder: Path, model: str, tag: str = "IMAGENET1K_V1") -> WeightsRecord:
    """Let a record of the catalogue stand for the golden weights, with a true digest, in a mirror and offline."""
    file = folder / f"{model}-{tag}.pth"
    torch.save(golden_state(model), file)
    digest = Digest("sha256", hashlib.sha256(file.read_bytes()).hexdigest())
    source = Source(f"https://example.invalid/{file.name}", digest, "a test")
    record = replace(CATALOG[model, tag], sources=(source,))
    monkeypatch.setitem(CATALOG, (model, tag), record)
    monkeypatch.setenv("HARDNET_MIRROR", str(folder))
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    return record
