"""Write the tables of the documents from the committed results, so that the two cannot drift apart.

    python tools/speed_table.py            # rewrite what stands between the markers
    python tools/speed_table.py --check    # status 1 where something is stale

A table stands between two comments, the first of which says what belongs there:

    <!-- generated: speed cpu-224.json -->      one line per model, one column per engine
    <!-- generated: full cpu-224.json -->       every row
    <!-- generated: all -->                     every row of every file, each under a heading
    <!-- end of generated -->

Files are those of benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import end_to_end, tables

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- generated: ([^>]*?) -->\n)(.*?)(<!-- end of generated -->)", re.DOTALL)
# Lines that a marker may not hide in: what stands in a code block is an example.
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def render(what: str, results: Path) -> str:
    """Return the content of a block.

    Raises:
        ValueError: the marker says nothing that is known, or the file is missing.
    """
    if what == "all":
        parts = [f"### {path.name}\n\n{_everything(_read(path))}" for path in sorted(results.glob("*.json"))]
        return "\n\n".join(parts) or "No results are committed."
    style, _, name = what.partition(" ")
    styles: dict[str, Callable[[dict[str, Any]], str]] = {"speed": tables.speed_table, "full": _everything}
    if style not in styles:
        raise ValueError(f"a marker says {what!r}; known: all, {', '.join(f'{style} FILE' for style in styles)}")
    return styles[style](_read(results / name))


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"a marker names {path.name}, which is not in {path.parent.name}") from None
    return content


def _everything(results: dict[str, Any]) -> str:
    return f"{_surroundings(results)}\n\n{_TABLES[results['kind']](results)}"


def _surroundings(results: dict[str, Any]) -> str:
    """Return the machine, the protocol and the versions in three sentences."""
    machine = results["machine"]
    where = [machine["processor"], machine["architecture"], f"{machine['cores']} cores", machine["instructions"]]
    where += [machine[key] for key in ("gpu",) if key in machine]
    protocol = ", ".join(f"{key.replace('_', ' ')} {_text(value)}" for key, value in results["protocol"].items())
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    load = f"Load average before the run: {machine['load_before']}."
    return f"{results['date']}. {', '.join(where)}. {load} Protocol: {protocol}. Versions: {versions}."


def _text(value: object) -> str:
    return "default" if value is None else f"({value})" if isinstance(value, str) and "," in value else str(value)


def _end_to_end(results: dict[str, Any]) -> str:
    return tables.markdown(end_to_end.HEADER, [end_to_end.cells(row) for row in results["rows"]])


def _plain(results: dict[str, Any]) -> str:
    """Return rows that hold nothing but numbers and names, under their own keys."""
    rows = results["rows"]
    header = [key.replace("_", " ") for key in rows[0]]
    return tables.markdown(header, [[tables.NONE if v is None else str(v) for v in row.values()] for row in rows])


_TABLES = {
    "speed": tables.full_table,
    "end to end": _end_to_end,
    "start": _plain,
    "training step": _plain,
    "without concatenation": _plain,
    "convolution forms": _plain,
}


def updated(text: str, results: Path) -> str:
    """Return a document with its blocks written anew."""
    examples = [found.span() for found in CODE.finditer(text)]

    def replace(found: re.Match[str]) -> str:
        if any(start <= found.start() < stop for start, stop in examples):
            return found[0]
        return f"{found[1]}\n{render(found[2], results)}\n\n{found[4]}"

    return BLOCK.sub(replace, text)


def stale(documents: Iterable[Path], results: Path) -> dict[Path, str]:
    """Return the documents that differ from what the results say, with their right content."""
    texts = {path: path.read_text(encoding="utf-8") for path in documents}
    new = {path: updated(text, results) for path, text in texts.items()}
    return {path: text for path, text in new.items() if text != texts[path]}


def main(argv: list[str] | None = None) -> int:
    """Rewrite or check the documents."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="change nothing, status 1 where something is stale")
    check = parser.parse_args(argv).check
    found = stale(DOCUMENTS, RESULTS)
    for path, text in found.items():
        if check:
            print(f"{path.relative_to(ROOT)} is stale: python tools/speed_table.py")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)} written")
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main())
