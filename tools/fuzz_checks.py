"""What the fuzz targets share: choices made from bytes, and the checks of what the library says."""

from __future__ import annotations


class Choices:
    """Decisions read off the bytes, one after the other; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    def number(self, below: int) -> int:
        """Take one choice: a number from 0 to below - 1; 0 when the bytes are used up."""
        value = self._data[self._position] if self._position < len(self._data) else 0
        self._position += 1
        return value % below

    def text(self) -> str:
        """Take a short text."""
        length = self.number(12)
        raw = self._data[self._position : self._position + length]
        self._position += length
        return raw.decode("utf-8", "replace")

    @property
    def left(self) -> bool:
        """Whether bytes are left."""
        return self._position < len(self._data)


def require(condition: object, broken: object) -> None:
    """Fail with what is broken where the condition does not hold."""
    if not condition:
        raise AssertionError(broken)


def check_message(error: Exception, lines: int = 100) -> None:
    """Fail where an error says nothing, too much, or what cannot be printed."""
    text = str(error)
    require(text.strip(), "an error without a word")
    require(len(text) < 5000, f"an error of {len(text)} characters")
    require(text.count("\n") < lines, "an error of too many lines")
    text.encode("utf-8")
