"""The model tests of timm and the encoder tests of segmentation-models-pytorch, run on the registered models."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

from hardnet.weights.catalog import CATALOG

MODELS = ("hardnet39ds", "hardnet68ds", "hardnet68", "hardnet85")


class Suite(NamedTuple):
    """The file tests/test_models.py of a source distribution, and what is changed in it before it runs."""

    requirement: str
    selected: str
    edits: dict[str, str]
    allowed: set[str]  # the failures that are expected


TIMM = Suite(
    "timm==1.0.31",
    "hardnet",
    # The modules whose models have forward_intermediates.
    {"FEAT_INTER_FILTERS = [": "FEAT_INTER_FILTERS = ['timm_registry', "},
    {
        f"{test}[1-{model}.{tag.lower()}]"  # needs a download; offline, resnet18.a1_in1k fails in the same way
        for test in ("test_model_load_pretrained", "test_model_features_pretrained")
        for model, tag in CATALOG
        if tag != "FASHION_MNIST"  # packaged
    },
)
# Later source distributions have no encoder tests; these run against the installed version.
SEGMENTATION = Suite(
    "segmentation-models-pytorch==0.3.4",
    "",
    {
        "import mock\n": "",
        'sys.modules["torchvision._C"] = mock.Mock()\n': "",
        "ENCODERS = get_encoders()": f"ENCODERS = {[f'tu-{model}' for model in MODELS]}",
        'DEFAULT_ENCODER = "resnet18"': 'DEFAULT_ENCODER = "tu-hardnet39ds"',
    },
    set(),
)


@pytest.mark.slow
@pytest.mark.parametrize("suite", [TIMM, SEGMENTATION], ids=["timm", "segmentation-models-pytorch"])
def test_suite(suite: Suite, tmp_path: Path) -> None:
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*download, suite.requirement, "--dest", tmp_path], check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    source = next(tmp_path.glob("*/tests/test_models.py")).read_text(encoding="utf-8")
    for old, new in suite.edits.items():
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    copy = tmp_path / "test_suite.py"  # outside the distribution, so that its imports find the installed package
    copy.write_text(source, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "hardnet.timm_registry", "-k", suite.selected, "-rfE"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "HARDNET_OFFLINE": "1"}
    result = subprocess.run(
        [*command, f"--junitxml={report}", copy], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314  (our own file)
    failed = {str(case.get("name")) for case in cases if {"failure", "error"} & {child.tag for child in case}}
    print(f"{suite.requirement}: {len(cases)} run, {len(failed)} failed, {len(suite.allowed)} listed")
    assert len(cases) > 40, result.stdout
    assert failed == suite.allowed, result.stdout
