"""A drawing as a list of shapes, written as SVG for the page and as PNG with Pillow.

Not matplotlib: its SVG fixes every colour, so that no page can show it dark, and is several times as large; and a
benchmark needs no further dependency this way. Colours are names; `COLOURS` says what they are in light and dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import cos, pi, sin
from types import MappingProxyType
from typing import Literal

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]

# Light, dark. c0 to c5: colours that stay apart for colour-blind eyes (after Okabe and Ito), each with 3:1 at least
# against its background; shapes tell the same.
COLOURS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "surface": ("#ffffff", "#14181f"),
        "ink": ("#1b2028", "#e8ebf0"),
        "muted": ("#59626f", "#a3adba"),
        "grid": ("#e3e6ea", "#2b323c"),
        "axis": ("#9aa3ae", "#5c6673"),
        "c0": ("#0b63a8", "#5db3f0"),
        "c1": ("#c24e00", "#ff9a4d"),
        "c2": ("#007a5a", "#3fd0a2"),
        "c3": ("#a0458a", "#ea9fd3"),
        "c4": ("#7a6400", "#e5cd4a"),
        "c5": ("#555b66", "#b9c0ca"),
    }
)
SERIES = 6
MARGIN = 18.0  # around a picture that is a file of its own
FONT = "system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif"


@dataclass(frozen=True)
class Path:
    """Lines through points, each run for itself; filled where `fill` is given.

    Args:
        runs: Points in pixels, y downwards.
        stroke: Colour of the line; None for none.
        width: Of the line.
        fill: Colour of the inside.
        opacity: Of the fill.
        dash: Lengths of dash and gap.
        title: What a pointer over it shows.
    """

    runs: tuple[tuple[Point, ...], ...]
    stroke: str | None = "ink"
    width: float = 1.0
    fill: str | None = None
    opacity: float = 1.0
    dash: tuple[float, float] | None = None
    title: str = ""


@dataclass(frozen=True)
class Dots:
    """Many small round dots of one colour."""

    points: tuple[Point, ...]
    colour: str
    diameter: float = 5.0
    opacity: float = 0.55


@dataclass(frozen=True)
class Text:
    """One line of text; `y` is its baseline."""

    x: float
    y: float
    text: str
    size: float = 13.0
    colour: str = "ink"
    anchor: Anchor = "start"
    bold: bool = False
    halo: bool = False


Shape = Path | Dots | Text


@dataclass
class Drawing:
    """Shapes in the order in which they are painted.

    Args:
        width: Pixels.
        height: Likewise.
        title: Its name for those who do not see it.
        description: What it shows, in words.
        shapes: What was drawn.
    """

    width: float
    height: float
    title: str
    description: str
    shapes: list[Shape] = field(default_factory=list)

    def line(
        self, *points: Point, stroke: str = "ink", width: float = 1.0, dash: tuple[float, float] | None = None
    ) -> None:
        self.shapes.append(Path((points,), stroke, width, dash=dash))

    def area(self, points: Sequence[Point], fill: str, *, opacity: float = 1.0, title: str = "") -> None:
        self.shapes.append(Path((tuple(points),), None, 0, fill, opacity, title=title))

    def box(self, x: float, y: float, w: float, h: float, fill: str, *, opacity: float = 1.0, title: str = "") -> None:
        self.area([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], fill, opacity=opacity, title=title)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 13.0,
        colour: str = "ink",
        anchor: Anchor = "start",
        bold: bool = False,
        halo: bool = False,
    ) -> None:
        self.shapes.append(Text(x, y, text, size, colour, anchor, bold, halo))

    def marker(
        self, x: float, y: float, series: int, *, size: float = 6.0, hollow: bool = False, title: str = ""
    ) -> None:
        """A mark whose shape and colour both tell the series; hollow ones are filled with the background."""
        colour = f"c{series % SERIES}"
        outline = tuple((x + size * dx, y + size * dy) for dx, dy in MARKERS[series % SERIES])
        fill = "surface" if hollow else colour
        self.shapes.append(
            Path(((*outline, outline[0]),), colour if hollow else "surface", 2.0 if hollow else 1.0, fill, title=title)
        )


def _round(corners: int, *radii: float) -> tuple[Point, ...]:
    """A regular polygon, or with two radii a star, on its tip."""
    total = corners * len(radii)
    turns = [(radii[index % len(radii)], 2 * pi * index / total - pi / 2) for index in range(total)]
    return tuple((radius * cos(angle), radius * sin(angle)) for radius, angle in turns)


# Circle, square, triangle, diamond, triangle on its tip, star; about the same area.
MARKERS: tuple[tuple[Point, ...], ...] = (
    _round(20, 1.0),
    ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
    ((0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    ((0.0, -1.3), (1.15, 0.0), (0.0, 1.3), (-1.15, 0.0)),
    ((0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
    _round(5, 1.4, 0.62),
)
