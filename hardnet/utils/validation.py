"""Check numbers that callers and the command line give."""

import argparse


def check_count(what: str, value: int, least: int) -> None:
    """Check that a value is an integer >= ``least``; the ValueError names it by ``what``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{what} must be an integer >= {least}, got {value!r}")


def image_size(text: str) -> tuple[int, int]:
    """Read H or HxW, in pixels; for argparse."""
    sides = text.lower().split("x")  # of more than six digits the products would overflow
    if len(sides) > 2 or not all(side.isdecimal() and len(side) <= 6 for side in sides):
        raise argparse.ArgumentTypeError(f"must be H or HxW in pixels, as in 224 or 480x640, got {text!r}")
    return int(sides[0]), int(sides[-1])


def positive(text: str) -> int:
    """Read an integer >= 1; for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)
