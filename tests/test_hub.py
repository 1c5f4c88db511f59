"""torch.hub as a reader uses it: every case in a process of its own, since it is about what is imported when."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import golden_state

REPO = Path(__file__).resolve().parent.parent
SHIPPED = ("hubconf.py", "hardnet", "imagenet_classes.txt")

NO_NETWORK = """
import socket
def refuse(*args, **kwargs):
    raise OSError("the network is switched off")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""

ONLY_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torchvision", "PIL", "numpy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


FORGET_THIS_CHECKOUT = f"""
import sys
sys.path[:] = [entry for entry in sys.path if entry != {str(REPO)!r}]
"""


def run(code: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with the path cleared of this checkout, also where it is installed editable."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORGET_THIS_CHECKOUT + textwrap.dedent(code)],
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def output(code: str, cwd: Path, **variables: str) -> str:
    result = run(code, cwd, **variables)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a clone holds, away from this one, as an archive of the repository unpacks."""
    folder = tmp_path / "checkout"
    for name in SHIPPED:
        source, target = REPO / name, folder / name
        folder.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


@pytest.fixture
def hub(checkout: Path, tmp_path: Path) -> Path:
    """A hub cache as torch.hub leaves it behind, with a repository of ours in it."""
    folder = tmp_path / "torch_home" / "hub"
    folder.mkdir(parents=True)
    checkout.rename(folder / "somebody_hardnet_main")
    return folder


@pytest.mark.parametrize("reference", ["somebody/hardnet:main", "somebody/hardnet"])
def test_the_github_form_from_a_filled_cache(hub: Path, tmp_path: Path, reference: str) -> None:
    code = f"""
    {textwrap.indent(NO_NETWORK, "    ").strip()}
    import torch
    print(*sorted(torch.hub.list({reference!r}, trust_repo=True)))
    model = torch.hub.load({reference!r}, "hardnet68ds", trust_repo=True, num_classes=3)
    print(type(model).__name__, model.num_classes)
    """
    names, model = output(code, tmp_path, TORCH_HOME=str(hub.parent)).splitlines()[-2:]
    assert names.split() == ["hardnet39ds", "hardnet68", "hardnet68ds", "hardnet85"]
    assert model == "HarDNet 3"


def test_the_help_text_is_one_that_a_person_can_use(hub: Path, tmp_path: Path) -> None:
    code = 'import torch; print(torch.hub.help("somebody/hardnet:main", "hardnet85", trust_repo=True))'
    help_text = output(code, tmp_path, TORCH_HOME=str(hub.parent))
    for word in ("pretrained", "num_classes", "in_chans", "drop_rate", "IMAGENET1K_V2", "(N, num_classes)", "ICCV"):
        assert word in help_text


def test_num_classes_is_not_swallowed(checkout: Path, tmp_path: Path) -> None:
    code = f"""
    import torch
    model = torch.hub.load({str(checkout)!r}, "hardnet39ds", source="local", num_classes=10, in_chans=1)
    print(*model(torch.rand(2, 1, 64, 64)).shape)
    try:
        torch.hub.load({str(checkout)!r}, "hardnet39ds", source="local", num_class=3)
    except TypeError as error:
        print(error)
    """
    shape, refusal = output(code, tmp_path).splitlines()
    assert shape == "2 10"
    assert refusal.startswith("hardnet39ds() got an unexpected keyword argument 'num_class'")
    assert "did you mean 'num_classes'?" in refusal


def test_loading_takes_nothing_but_torch(checkout: Path, tmp_path: Path) -> None:
    """Weights included: from a mirror folder, through the verified download, with torch alone importable."""
    weights = tmp_path / "weights.pth"
    torch.save(golden_state("hardnet39ds"), weights)
    code = f"""
    {textwrap.indent(ONLY_TORCH, "    ").strip()}
    import torch
    model = torch.hub.load({str(checkout)!r}, "hardnet39ds", source="local", weights={str(weights)!r})
    print(*model.eval()(torch.zeros(1, 3, 64, 64)).shape, *sorted({{"torchvision", "PIL", "numpy"}} & set(sys.modules)))
    """
    assert output(code, tmp_path).split() == ["1", "1000"]


def test_calls_long_after_loading_find_their_modules(checkout: Path, tmp_path: Path) -> None:
    """Loaded by a relative path, then moved elsewhere: lazy imports must not depend on either."""
    weights = tmp_path / "weights.pth"
    torch.save(golden_state("hardnet39ds"), weights)
    image = tmp_path / "image.png"
    from PIL import Image

    Image.new("RGB", (300, 260), "red").save(image)
    (tmp_path / "elsewhere").mkdir()
    code = f"""
    import os, sys, torch
    model = torch.hub.load("checkout", "hardnet39ds", source="local")
    os.chdir("elsewhere")
    assert not [name for name in ("hardnet.weights.download", "hardnet.inference") if name in sys.modules]
    assert not any(os.path.exists(os.path.join(place, "hubconf.py")) for place in sys.path)
    hardnet = sys.modules["hardnet"]
    model = hardnet.create_model("hardnet39ds", weights={str(weights)!r})
    [result] = hardnet.Classifier(model).predict({str(image)!r}, topk=2)
    print(len(result.predictions), sys.modules["hardnet.inference"].__file__)
    """
    count, where = output(code, tmp_path).split()
    assert count == "2"
    assert Path(where).resolve() == checkout / "hardnet" / "inference.py"


def test_loading_twice_and_pickling(checkout: Path, tmp_path: Path) -> None:
    code = f"""
    import pickle, torch
    models = [torch.hub.load({str(checkout)!r}, name, source="local") for name in ("hardnet39ds", "hardnet39ds")]
    twin = pickle.loads(pickle.dumps(models[0]))
    print(type(models[0]) is type(models[1]), type(twin) is type(models[0]))
    """
    assert output(code, tmp_path).split() == ["True", "True"]


def test_another_module_of_that_name_is_named(checkout: Path, tmp_path: Path) -> None:
    """Other HarDNet repositories keep a top-level hardnet.py, and users import both."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "hardnet.py").write_text("class HarDNet: pass\n")
    code = f"""
    import sys, torch
    sys.path.insert(0, {str(other)!r})
    import hardnet
    torch.hub.load({str(checkout)!r}, "hardnet68", source="local")
    """
    result = run(code, tmp_path)
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: another module named 'hardnet' is already imported in this process")
    assert str(other / "hardnet.py") in message
    assert str(checkout / "hardnet") in message


def test_a_namespace_of_that_name_is_named(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "hardnet").mkdir()
    code = f"""
    import torch, sys
    sys.path.insert(0, "")
    import hardnet
    torch.hub.load({str(checkout)!r}, "hardnet68", source="local")
    """
    result = run(code, tmp_path)
    assert "ImportError: another module named 'hardnet' is already imported" in result.stderr


def test_one_that_is_only_on_the_path_does_no_harm(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "hardnet.py").write_text("raise RuntimeError('wrong module')\n")
    code = f"""
    import torch
    print(type(torch.hub.load({str(checkout)!r}, "hardnet39ds", source="local")).__module__)
    """
    assert output(code, tmp_path).strip() == "hardnet.models.network"


def test_a_second_checkout_says_which_one_is_used(checkout: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    shutil.copytree(checkout, second)
    code = f"""
    import torch
    torch.hub.load({str(checkout)!r}, "hardnet39ds", source="local")
    torch.hub.load({str(checkout)!r}, "hardnet39ds", source="local")
    print(type(torch.hub.load({str(second)!r}, "hardnet39ds", source="local")).__name__)
    """
    result = run(code, tmp_path)
    assert result.stdout.strip() == "HarDNet"
    [line] = result.stderr.strip().splitlines()
    assert str(checkout / "hardnet") in line
    assert str(second / "hardnet") in line
