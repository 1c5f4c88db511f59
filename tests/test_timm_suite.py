"""timm's own model tests, from its source distribution, run on the registered models."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

SUITE = "timm==1.0.31"
SELECTED = "(hardnet39ds or hardnet68) and not hardnet68ds"
"""One model with depthwise-separable layers and one without."""
ALLOWED = {
    f"{test}[1-{model}.{tag}]": "needs a download, and the run is offline; resnet18.a1_in1k fails in the same way"
    for test in ("test_model_load_pretrained", "test_model_features_pretrained")
    for model, tag in (
        ("hardnet39ds", "imagenet1k_v1"),
        ("hardnet39ds", "imagenet1k_v2"),
        ("hardnet68", "imagenet1k_v1"),
    )
}
"""The failures that are expected, each with the reason and a model of timm's that fails as well."""


@pytest.mark.slow
def test_timms_model_tests(tmp_path: Path) -> None:
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", SUITE]
    subprocess.run([*download, "--dest", tmp_path], check=True)
    with tarfile.open(next(tmp_path.glob("timm-*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (tests,) = tmp_path.glob("timm-*/tests")
    suite = tests / "test_models.py"
    source = suite.read_text(encoding="utf-8")
    filters = "FEAT_INTER_FILTERS = ["
    assert source.count(filters) == 1  # the modules whose models have forward_intermediates
    suite.write_text(source.replace(filters, filters + "'timm_registry', "), encoding="utf-8")
    moved = suite.rename(tmp_path / suite.name)  # so that `import timm` finds the installed package
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "hardnet.timm_registry", "-k", SELECTED, "-rfE"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "TORCH_HOME": str(tmp_path / "empty"),
        "HARDNET_OFFLINE": "1",
    }
    done = subprocess.run(
        [*command, f"--junitxml={report}", moved], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314  (our own file)
    failed = {str(case.get("name")) for case in cases if {"failure", "error"} & {child.tag for child in case}}
    assert len(cases) > 20, done.stdout
    assert failed - ALLOWED.keys() == set(), done.stdout
    assert ALLOWED.keys() - failed == set(), "listed as failures, but passed"
