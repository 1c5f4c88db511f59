"""The quick start: its committed outputs are what the library says now, and it runs from top to bottom."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbformat import NotebookNode
from pictures import one_torch_thread
from PIL import Image

from tools.run_notebook import METADATA, cleaned, executed

REPO = Path(__file__).parent.parent
PATH = REPO / "notebooks" / "quickstart.ipynb"
RERUN = "run: python -m tools.run_notebook notebooks/quickstart.ipynb"
MACHINE_PATH = re.compile(r"""(?<![\w.])/(?:home|root|tmp|work|opt|usr|var|mnt|Users)\b|\b[A-Z]:\\|site-packages""")


@pytest.fixture
def notebook() -> NotebookNode:
    return nbformat.read(PATH, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def pictures(notebook: NotebookNode) -> dict[str, Image.Image]:
    found = {}
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if encoded := output.get("data", {}).get("image/png"):
                found[cell.id] = Image.open(io.BytesIO(base64.b64decode(encoded)))
    return found


def check_form(notebook: NotebookNode) -> None:
    """Refuse what is not a clean run from top to bottom."""
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), RERUN
    assert notebook.metadata == METADATA, RERUN
    assert not any(cell.metadata for cell in notebook.cells), RERUN
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type in ("stream", "display_data", "execute_result"), output
        assert output.get("name", "stdout") == "stdout", output
        assert not output.get("metadata"), RERUN
    texts = copy.deepcopy(notebook)
    for output in (output for cell in code_cells(texts) for output in cell.outputs):
        output.get("data", {}).pop("image/png", None)
    assert not MACHINE_PATH.findall(json.dumps(texts, ensure_ascii=False))


def check_results(notebook: NotebookNode) -> None:
    """Look whether the outputs say what the notebook is there to show."""
    said = {cell.id: printed(cell) for cell in code_cells(notebook)}
    assert re.match(r" *(\d\d\.\d)%  Coat\n", said["classify"])
    assert "the same class for 30 of 30 pictures" in said["fast"]
    [difference] = re.findall(r"largest difference: (\S+) of", said["fast"])
    assert float(difference) < 1e-4
    assert re.search(r"engine \w+: \d+\.\d times as fast", said["fast"])
    head, everything = map(int, re.findall(r": (\d+) % right", said["train"]))
    assert 40 < head < everything  # by chance: 33
    assert everything >= 95
    shown = pictures(notebook)
    assert list(shown) == ["bars", "maps", "data", "curves", "confusions"]
    assert all(min(low < high for low, high in picture.convert("RGB").getextrema()) for picture in shown.values())


def test_the_committed_run_is_clean_and_small(notebook: NotebookNode) -> None:
    check_form(notebook)
    check_results(notebook)
    assert PATH.stat().st_size < 400_000
    for cell in code_cells(notebook):
        compile(cell.source, cell.id, "exec")


@pytest.mark.parametrize("folder", [REPO, PATH.parent], ids=["root", "notebooks"])
def test_what_it_says_about_the_network_is_so(
    notebook: NotebookNode, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All before the measurement and the training is the same on every machine, wherever the notebook is opened."""
    monkeypatch.setenv("HARDNET_OFFLINE", "1")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    plt.switch_backend("agg")  # draws without a window
    cells = code_cells(notebook)
    names = [cell.id for cell in cells]
    namespace: dict[str, object] = {"__name__": "__main__"}
    with plt.rc_context(), one_torch_thread():
        for cell in cells[: names.index("fast")]:
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(cell.source, cell.id, "exec"), namespace)  # noqa: S102  (our own notebook)
            assert output.getvalue() == printed(cell), f"{cell.id}; {RERUN}"


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook: NotebookNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"HARDNET_OFFLINE": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    committed = {cell.id: printed(cell) for cell in code_cells(notebook)}
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    run = cleaned(executed(notebook, PATH.parent))
    check_form(run)
    check_results(run)
    before = list(committed)[: list(committed).index("fast")]
    assert {cell.id: printed(cell) for cell in code_cells(run) if cell.id in before} == {
        name: committed[name] for name in before
    }


def test_what_differs_from_run_to_run_is_dropped(notebook: NotebookNode) -> None:
    untouched = copy.deepcopy(notebook)
    notebook.metadata["language_info"] = {"name": "python", "version": "3.99"}
    cell = code_cells(notebook)[0]
    cell.metadata["execution"] = {"iopub.execute_input": "2024-01-01T00:00:00Z"}
    cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text="x.py:1: UserWarning"))
    [cell] = [cell for cell in notebook.cells if cell.id == "bars"]
    cell.outputs[0].metadata["image/png"] = {"width": 10}
    cell.outputs[0].data["image/jpeg"] = "the same again"
    with pytest.raises(AssertionError):
        check_form(notebook)
    assert cleaned(notebook) == untouched
