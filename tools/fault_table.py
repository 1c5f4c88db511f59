"""Write the table of faults in docs/reliability.md from the list that the tests run: `python -m tools.fault_table`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- the table of tests/faults.py: begin -->\n", "<!-- the table of tests/faults.py: end -->\n"


def table() -> str:
    """Return the table, a row per fault."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from faults import FAULTS
    finally:
        sys.path.pop(0)
    rows = ["| the server sends, or does | requests | what the user gets |", "|---|---|---|"]
    for fault in FAULTS:
        got = f'the next source; alone, an error: "... {fault.says} ..."' if fault.says else "the file"
        rows.append(f"| {fault.what} | {fault.requests} | {got} |")
    given_up = sum(bool(fault.says) for fault in FAULTS)
    summary = f"{len(FAULTS)} faults: {len(FAULTS) - given_up} overcome, {given_up} given up on with the reason.\n"
    return summary + "\n" + "\n".join(rows) + "\n"


def updated(document: str) -> str:
    """Return the document with the table as it should be.

    Raises:
        ValueError: the document has no place for it.
    """
    before, found, rest = document.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"{DOCUMENT.name} has no lines {BEGIN.strip()} and {END.strip()}")
    return before + BEGIN + "\n" + table() + "\n" + END + after


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
