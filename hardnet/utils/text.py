"""Format text for messages and the terminal."""

import codecs
import csv
import difflib
import io
import os
from collections.abc import Iterable, Sequence


def printable(text: str) -> str:
    r"""Escape control characters and undecodable bytes, so that the text is one line, with ``\n`` or ``\xff``."""
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def escape_bytes(name: str) -> str:
    r"""Escape the undecodable bytes of a file name, as ``\xff``, so that the text can be encoded in UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def split_lines(content: bytes) -> list[str]:
    r"""Split a list of file names at ``\n`` or ``\r\n`` only; a byte order mark is no part of the first name."""
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [os.fsdecode(line.removesuffix(b"\r")) for line in lines]


def counted(number: int, noun: str) -> str:
    """Return a number of things as text: "1 epoch", "2 classes"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def duration(seconds: float) -> str:
    """Return a time as text, in the unit that suits it: "40 s", "12 minutes", "3.5 hours"."""
    if seconds < 100:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Align columns: the first to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]
    left = [not any(row[i][:1].isdigit() for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        aligned = (c.ljust(w) if flush else c.rjust(w) for c, w, flush in zip(row, widths, left, strict=True))
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), *(line(row) for row in cells)])


def csv_row(*cells: object) -> str:
    """Return a line of a CSV file without its end; cells with line breaks are quoted."""
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)  # its line end \r\n makes it quote both characters
    return buffer.getvalue().removesuffix("\r\n")


def known_names(wrong: str, names: Iterable[str]) -> str:
    """List the known names for a message, with the nearest spelling of the wrong one if there is one."""
    by_key = {name.lower().replace("-", "").replace("_", ""): name for name in names}
    near = difflib.get_close_matches(wrong.lower().replace("-", "").replace("_", ""), by_key, n=1)
    return ", ".join(by_key.values()) + (f" (did you mean {by_key[near[0]]!r}?)" if near else "")


def reason(error: BaseException) -> str:
    """Return why an error was raised, in one line: the system's words, the message, or else the type."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(" ".join(text.split())) or type(error).__name__
