"""Drawings as PNG, painted with Pillow four times as large and scaled down; light colours on white."""

from __future__ import annotations

import io
from itertools import pairwise
from math import dist
from typing import TYPE_CHECKING

from vexport.bench.page.canvas import COLOURS, MARGIN, Dots, Drawing, Path, Point, Text
from vexport.bench.page.fonts import font

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

PAINTED = 4  # pixels per unit while painting
KEPT = 2  # and in the file
# Pillow's own font, which is there on every machine, has few signs beyond ASCII.
_PLAIN = str.maketrans(
    {"×": "x", "–": "-", "—": "-", "≥": ">=", "≤": "<=", "→": "->", "µ": "u", "’": "'", "\u00a0": " "}
)


def render_png(drawing: Drawing) -> bytes:
    """The picture at twice its nominal size."""
    from PIL import Image, ImageDraw

    width, height = drawing.width + 2 * MARGIN, drawing.height + 2 * MARGIN
    image = Image.new("RGB", (round(width * PAINTED), round(height * PAINTED)), _colour("surface"))
    brush = ImageDraw.Draw(image, "RGBA")
    for shape in drawing.shapes:
        if isinstance(shape, Path):
            _paint_path(brush, shape)
        elif isinstance(shape, Dots):
            _paint_dots(brush, shape)
        else:
            _paint_text(brush, shape)
    small = image.resize((round(width * KEPT), round(height * KEPT)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    # So many colours hold the edges' shades, in a third of the size.
    small.quantize(128, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _colour(name: str, opacity: float = 1.0) -> tuple[int, int, int, int]:
    text = COLOURS[name][0]
    red, green, blue = (int(text[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue, round(255 * opacity)


def _scaled(points: tuple[Point, ...]) -> list[Point]:
    return [((x + MARGIN) * PAINTED, (y + MARGIN) * PAINTED) for x, y in points]


def _paint_path(brush: ImageDraw, path: Path) -> None:
    for run in path.runs:
        points = _scaled(run)
        if path.fill and len(points) > 2:
            brush.polygon(points, fill=_colour(path.fill, path.opacity))
        if path.stroke and len(points) > 1:
            width = max(1, round(path.width * PAINTED))
            for part in _dashes(points, path.dash) if path.dash else [points]:
                brush.line(part, fill=_colour(path.stroke), width=width, joint="curve")


def _dashes(points: list[Point], dash: tuple[float, float]) -> list[list[Point]]:
    """A line cut into its dashes."""
    lengths = [length * PAINTED for length in dash]
    parts: list[list[Point]] = []
    drawing, left = True, lengths[0]
    part = [points[0]]
    for first, last in pairwise(points):
        whole, gone = dist(first, last), 0.0
        while whole - gone > left:
            gone += left
            at = (first[0] + (last[0] - first[0]) * gone / whole, first[1] + (last[1] - first[1]) * gone / whole)
            if drawing:
                parts.append([*part, at])
            drawing = not drawing
            part, left = [at], lengths[0 if drawing else 1]
        left -= whole - gone
        part.append(last)
    return [*parts, part] if drawing else parts


def _paint_dots(brush: ImageDraw, dots: Dots) -> None:
    radius = dots.diameter * PAINTED / 2
    for x, y in _scaled(dots.points):
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(dots.colour, dots.opacity))


def _paint_text(brush: ImageDraw, text: Text) -> None:
    said = text.text.translate(_PLAIN).encode("latin-1", "replace").decode("latin-1")
    face = font(text.size * PAINTED)
    weight = PAINTED / 6 if text.bold else 0
    anchor = {"start": "ls", "middle": "ms", "end": "rs"}[text.anchor]
    ((x, y),) = _scaled(((text.x, text.y),))
    if text.halo:
        brush.text(
            (x, y),
            said,
            fill=_colour("surface"),
            font=face,
            anchor=anchor,
            stroke_width=6,
            stroke_fill=_colour("surface"),
        )
    brush.text((x, y), said, fill=_colour(text.colour), font=face, anchor=anchor, stroke_width=weight)
