"""Just enough SVG for the pictures of the documentation, readable in light and in dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape, quoteattr

# One colour per role and scheme. The background is drawn: a viewer may be dark while the system is light.
COLOURS = {
    "paper": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "faint": ("#8c959f", "#6e7681"),
    "first": ("#0969da", "#58a6ff"),
    "second": ("#bc4c00", "#f0883e"),
    "third": ("#1a7f37", "#3fb950"),
    "fourth": ("#8250df", "#bc8cff"),
    "fifth": ("#bf3989", "#f778ba"),
}

_STYLE = """
text {font: 13px system-ui, sans-serif; fill: var(--ink)}
.small {font-size: 11px}
.title {font-size: 15px; font-weight: 600}
.line {fill: none; stroke-width: 1.6}
"""


class Drawing:
    """A picture of ``width`` x ``height`` units that grows by one element per call."""

    def __init__(self, width: int, height: int, title: str) -> None:
        light, dark = (
            "".join(f"--{name}: {pair[scheme]}; " for name, pair in COLOURS.items()).rstrip() for scheme in (0, 1)
        )
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label={quoteattr(title)}>',
            f"<title>{escape(title)}</title>",
            f"<style>\nsvg {{{light}}}\n@media (prefers-color-scheme: dark) {{svg {{{dark}}}}}{_STYLE}</style>",
            f'<rect width="{width}" height="{height}" fill="var(--paper)"/>',
        ]

    def text(self, x: float, y: float, words: object, kind: str = "", anchor: str = "middle", **data: object) -> None:
        """Write words with their baseline at (x, y)."""
        name = f' class="{kind}"' if kind else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{name}{_data(data)}>{escape(str(words))}</text>'
        )

    def rect(
        self, x: float, y: float, width: float, height: float, colour: str, opacity: float = 1, **data: object
    ) -> None:
        """Fill a rectangle whose upper left corner is at (x, y)."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="var(--{colour})" '
            f'fill-opacity="{opacity:g}"{_data(data)}/>'
        )

    def path(self, description: str, colour: str, dash: str = "", **data: object) -> None:
        """Draw a line along an SVG path description."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(f'<path class="line" d="{description}" stroke="var(--{colour})"{dashes}{_data(data)}/>')

    def polyline(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        """Join points by straight lines."""
        self.path("M" + " L".join(f"{x:.2f} {y:.2f}" for x, y in points), colour)

    def circle(self, x: float, y: float, radius: float, colour: str, **data: object) -> None:
        """Fill a disc."""
        self._parts.append(f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:g}" fill="var(--{colour})"{_data(data)}/>')

    def ring(self, x: float, y: float, radius: float, colour: str, **data: object) -> None:
        """Draw a circle."""
        half = f"a{radius:g} {radius:g} 0 1 0"
        self.path(f"M{x - radius:.2f} {y:.2f} {half} {2 * radius:g} 0 {half} {-2 * radius:g} 0", colour, **data)

    def square(self, x: float, y: float, radius: float, colour: str, **data: object) -> None:
        """Fill a square around a point."""
        self.rect(round(x - radius, 2), round(y - radius, 2), 2 * radius, 2 * radius, colour, **data)

    def __str__(self) -> str:
        return "\n".join([*self._parts, "</svg>", ""])


def ticks(low: float, high: float, step: float) -> Iterable[float]:
    """Iterate over the multiples of ``step`` from ``low`` to ``high``."""
    first = int(-(-low // step))
    return (number * step for number in range(first, int(high // step) + 1))


def _data(data: dict[str, object]) -> str:
    return "".join(f' data-{name}="{value}"' for name, value in data.items())
