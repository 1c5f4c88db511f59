"""The wheel: built, looked into, installed elsewhere and used there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hardnet

REPO = Path(__file__).parent.parent


def run(*command: object, cwd: Path, **variables: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
    result = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as an installer does: from the source distribution, with the build back end that is installed here."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPO, cwd=folder)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel]
    run(*pip, cwd=folder)
    return folder


def test_the_wheel_holds_what_it_needs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [Path(name) for name in archive.namelist()]
    ours = {name for name in names if name.parts[0] == "hardnet"}
    others = {name for name in names if name.parts[0] != "hardnet"}
    tree = (REPO / "hardnet").rglob("*")
    modules = {path.relative_to(REPO) for path in tree if path.is_file() and "__pycache__" not in path.parts}
    data = {Path("hardnet/imagenet_classes.txt")}
    images = [path for path in (REPO / "images").rglob("*") if path.is_file()]
    data |= {Path("hardnet/samples") / path.relative_to(REPO / "images") for path in images}
    assert ours == modules | data
    assert {name.parts[0] for name in others} == {f"hardnet-{hardnet.__version__}.dist-info"}
    assert Path(f"hardnet-{hardnet.__version__}.dist-info/licenses/LICENSE") in others


def test_the_installed_library_works_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = f"""
import hardnet
assert hardnet.__file__.startswith({str(installed)!r}), hardnet.__file__
model = hardnet.create_model("hardnet39ds", weights="FASHION_MNIST")
print(model.num_classes, hardnet.get_weights("hardnet68", "IMAGENET1K_V1").categories[0])
"""
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).strip() == "10 tench"


@pytest.mark.slow
def test_the_console_script_is_there(installed: Path, tmp_path: Path) -> None:
    version = run(installed / "bin" / "hardnet", "--version", cwd=tmp_path, PYTHONPATH=str(installed))
    assert version.strip() == f"hardnet {hardnet.__version__}"
