"""Run a notebook from top to bottom and save it in place, without what differs from run to run.

    pip install -e ".[notebook]"
    python -m tools.run_notebook notebooks/quickstart.ipynb

The outputs that are committed come from here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run the cells in a fresh kernel that works in ``folder``; the notebook gets its outputs.

    Raises:
        CellExecutionError: a cell raised.
    """
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True, resources=resources
    )
    return client.execute()


def cleaned(notebook: NotebookNode) -> NotebookNode:
    """Drop the metadata that a run or an editor leaves, and warnings, which name paths of the machine."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "data" in output:  # of a picture shown in two formats, one is enough
                    output.metadata = NotebookNode()
                    output.data.pop("image/jpeg", None)
    return notebook


def main() -> None:
    """Run the notebooks named on the command line, and save them."""
    for path in map(Path, sys.argv[1:]):
        nbformat.write(cleaned(executed(nbformat.read(path, as_version=4), path.parent)), path)


if __name__ == "__main__":
    main()
