"""Format text for messages and the terminal; check integers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def printable(text: str) -> str:
    r"""Return the text as one line that any terminal can show, line breaks and the like as ``\n`` or ``\xff``."""
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def check_count(what: str, value: int, least: int) -> None:
    """Refuse what is not a whole number from ``least`` up.

    Raises:
        ValueError: the number is another one; ``what`` names it.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{what} must be a whole number from {least} up, got {value!r}")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Align columns: the first to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]
    left = [not any(row[i][:1].isdigit() for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        aligned = (c.ljust(w) if flush else c.rjust(w) for c, w, flush in zip(row, widths, left, strict=True))
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), *(line(row) for row in cells)])
