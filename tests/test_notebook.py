"""The quick-start notebook runs from top to bottom, and its committed outputs are those of the current code."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from hardnet.inference.results import ImageResult, Prediction, Results

PATH = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"
RERUN = "run: jupyter nbconvert --to notebook --execute --inplace notebooks/quickstart.ipynb"
MACHINE_PATH = re.compile(r"""(?<![\w.])/(?:home|root|tmp|work|opt|usr|var|mnt|Users)\b|\b[A-Z]:\\|site-packages""")
DIFFERS = ("fast", "train")  # these cells print times, or results of training


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook: NotebookNode) -> dict[str, str]:
    return {
        cell.id: "".join(output.text for output in cell.outputs if output.output_type == "stream")
        for cell in code_cells(notebook)
    }


def check(notebook: NotebookNode) -> None:
    """A clean run, without paths of a machine, with the results that the text announces."""
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), RERUN
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs), RERUN
    text = printed(notebook)
    assert not MACHINE_PATH.findall("".join(text.values()) + "".join(cell.source for cell in notebook.cells))
    engines = text["fast"].splitlines()
    assert {line.split()[0] for line in engines} >= {"eager", "torch"}
    for line in engines:
        assert "the same class for 30 of 30 pictures" in line
        assert float(re.findall(r"largest difference (\S+) of", line)[0]) < 1e-4
    head, everything = map(int, re.findall(r": (\d+) % ", text["train"]))
    assert 40 < head < everything  # by chance: 33
    assert everything >= 95


def test_the_committed_run_is_clean_and_small() -> None:
    check(nbformat.read(PATH, as_version=4))
    assert PATH.stat().st_size < 600_000


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"HARDNET_OFFLINE": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    committed = printed(nbformat.read(PATH, as_version=4))
    options = ["--to", "notebook", "--execute", "--ExecutePreprocessor.timeout=600", "--output-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "nbconvert", *options, str(PATH)], check=True, capture_output=True)
    run = nbformat.read(tmp_path / PATH.name, as_version=4)
    for cell in code_cells(run):  # warnings depend on the machine
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    check(run)
    new = printed(run)
    assert {name: new[name] for name in new if name not in DIFFERS} == {
        name: committed[name] for name in committed if name not in DIFFERS
    }, RERUN


def test_a_list_of_results_shows_pictures_classes_and_errors() -> None:
    path = str(PATH.parent.parent / "images" / "cat.jpg")
    cat = ImageResult(path, (Prediction("a <cat>", 0, 0.75, path), Prediction("dog", 1, 0.25, path)))
    results = Results([cat, ImageResult("gone.png", (), "gone.png: no such file"), *[cat] * 50])
    html = results._repr_html_()
    assert html.count("<img ") == 39
    assert "a &lt;cat&gt;</td><td>75.0%" in html
    assert "width:75.0%" in html
    assert "gone.png: no such file" in html
    assert "and 12 more" in html
    assert len(html) < 1_000_000
