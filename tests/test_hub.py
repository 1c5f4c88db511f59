"""torch.hub as a reader uses it: every case in a process of its own, since it is about what is imported when."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import golden_state
from offline_copy import REPO, copy_checkout

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


def run(code: str, cwd: Path, before: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with the path cleared of this checkout, also where it is installed editable."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORGET_THIS_CHECKOUT + before + textwrap.dedent(code)],
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def output(code: str, cwd: Path, before: str = "", **variables: str) -> str:
    result = run(code, cwd, before, **variables)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a clone holds, away from this one, as an archive of the repository unpacks."""
    return copy_checkout(tmp_path / "checkout")


@pytest.fixture
def hub(checkout: Path, tmp_path: Path) -> Path:
    """A hub cache as torch.hub leaves it behind, with a repository of ours in it."""
    folder = tmp_path / "torch_home" / "hub"
    folder.mkdir(parents=True)
    checkout.rename(folder / "somebody_hardnet_main")
    return folder


def test_the_github_form_from_a_filled_cache(hub: Path, tmp_path: Path) -> None:
    code = """
    import pickle, torch
    models = []
    for reference in ("somebody/hardnet:main", "somebody/hardnet"):
        print(*sorted(torch.hub.list(reference, trust_repo=True)))
        models.append(torch.hub.load(reference, "hardnet39ds", trust_repo=True, num_classes=10, in_chans=1))
    print(type(models[0]) is type(models[1]), type(pickle.loads(pickle.dumps(models[0]))) is type(models[0]))
    print(type(models[0]).__name__, *models[0](torch.rand(2, 1, 64, 64)).shape)
    try:
        torch.hub.load(reference, "hardnet39ds", trust_repo=True, num_class=3)
    except TypeError as error:
        print(error)
    print(torch.hub.help(reference, "hardnet85", trust_repo=True))
    """
    lines = output(code, tmp_path, NO_NETWORK, TORCH_HOME=str(hub.parent)).splitlines()
    first, second, same, model, refusal, *help_text = lines
    assert first == second == "hardnet39ds hardnet68 hardnet68ds hardnet85"
    assert (same, model) == ("True True", "HarDNet 2 10")
    assert refusal.startswith("hardnet39ds() got an unexpected keyword argument 'num_class'")
    assert "did you mean 'num_classes'?" in refusal
    for word in ("pretrained", "num_classes", "in_chans", "drop_rate", "DEFAULT", "HarDNet-85"):
        assert word in "\n".join(help_text)


def test_loading_takes_nothing_but_torch(checkout: Path, tmp_path: Path) -> None:
    """Weights included: from a mirror folder, through the verified download, with torch alone importable."""
    weights = tmp_path / "weights.pth"
    torch.save(golden_state("hardnet39ds"), weights)
    code = f"""
    import torch
    model = torch.hub.load({str(checkout)!r}, "hardnet39ds", source="local", weights={str(weights)!r})
    print(*model.eval()(torch.zeros(1, 3, 64, 64)).shape, *sorted({{"torchvision", "PIL", "numpy"}} & set(sys.modules)))
    """
    assert output(code, tmp_path, ONLY_TORCH).split() == ["1", "1000"]


@pytest.mark.slow
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
    assert not any(os.path.exists(os.path.join(place, "hubconf.py")) for place in sys.path)
    hardnet = sys.modules["hardnet"]
    model = hardnet.create_model("hardnet39ds", weights={str(weights)!r})
    [result] = hardnet.Classifier(model).predict({str(image)!r}, topk=2)
    print(len(result.predictions), sys.modules["hardnet.inference.classifier"].__file__)
    """
    count, where = output(code, tmp_path).split()
    assert count == "2"
    assert Path(where).resolve() == checkout / "hardnet" / "inference" / "classifier.py"


def test_another_module_of_that_name_is_named(checkout: Path, tmp_path: Path) -> None:
    """Other HarDNet repositories keep a top-level hardnet.py, and users import both."""
    other = tmp_path / "other"
    (other / "namespace" / "hardnet").mkdir(parents=True)
    (other / "hardnet.py").write_text("class HarDNet: pass\n")
    for place, where in ((other, other / "hardnet.py"), (other / "namespace", other / "namespace" / "hardnet")):
        code = f"""
        import runpy, sys
        sys.path.insert(0, {str(place)!r})
        import hardnet
        runpy.run_path({str(checkout / "hubconf.py")!r})
        """
        result = run(code, tmp_path)
        assert result.returncode == 1
        message = result.stderr.strip().splitlines()[-1]
        assert message.startswith("ImportError: another module named 'hardnet' is already imported in this process")
        assert f"from {where}," in message
        assert str(checkout / "hardnet") in message


def test_which_of_several_is_used(checkout: Path, tmp_path: Path) -> None:
    """A module that is only on the path does no harm; a second checkout gets the first one's models, with a warning."""
    (tmp_path / "hardnet.py").write_text("raise RuntimeError('wrong module')\n")
    second = tmp_path / "second"
    shutil.copytree(checkout, second)
    code = f"""
    import torch
    for place in ({str(checkout)!r}, {str(checkout)!r}, {str(second)!r}):
        print(type(torch.hub.load(place, "hardnet39ds", source="local")).__module__)
    """
    result = run(code, tmp_path)
    assert result.stdout.split() == ["hardnet.models.network"] * 3, result.stderr
    [line] = result.stderr.strip().splitlines()
    assert str(checkout / "hardnet") in line
    assert str(second / "hardnet") in line
