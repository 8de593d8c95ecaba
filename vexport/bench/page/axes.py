"""From values to pixels: linear and logarithmic scales with round ticks, and the frame of a plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vexport.bench.page.canvas import Drawing
from vexport.bench.page.fonts import text_width
from vexport.bench.page.words import digits

TICK_SIZE = 12.0


@dataclass(frozen=True)
class Scale:
    """A range of values on a range of pixels.

    Args:
        low: Least value; positive on a logarithmic scale.
        high: Greatest value, above `low`.
        start: Pixel of `low`.
        end: Pixel of `high`.
        log: Whether equal distances are equal ratios.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 8) -> list[float]:
        """Round values inside the range, so many at the most."""
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


def spread_scale(values: Sequence[float], start: float, end: float, *, log: bool = False, room: float = 0.06) -> Scale:
    """A scale that holds all values, with room on both sides as a share of the range; one value alone gets a range."""
    low, high = min(values), max(values)
    if log:
        factor = (high / low) ** room if high > low * 1.05 else 1.2
        return Scale(low / factor, high * factor, start, end, log=True)
    margin = (high - low) * room if high > low else max(abs(high) * 0.1, 1.0)
    return Scale(low - margin, high + margin, start, end)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Of every decade some digits, as many as fit; below a factor of three, linear ticks."""
    if high / low < 3:
        return [value for value in _linear_ticks(low, high, most) if value > 0]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**decade for decade in decades for factor in factors]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= most and (len(found) >= 2 or len(factors) == 1):
            return found
    step = -(-len(found) // most)
    return found[::step]


def tick_text(value: float) -> str:
    """A tick's value, no longer than it must be."""
    return f"{value:.6g}" if 1e-3 <= abs(value) < 1e5 or value == 0 else digits(value, 1)


def draw_frame(
    drawing: Drawing,
    x: Scale,
    y: Scale,
    *,
    x_title: str,
    y_title: str,
    x_text: Callable[[float], str] = tick_text,
    y_text: Callable[[float], str] = tick_text,
    x_ticks: Sequence[float] | None = None,
    y_ticks: Sequence[float] | None = None,
) -> None:
    """Grid, ticks and titles; `y` runs from the bottom (`start`) to the top (`end`).

    The title of the upright axis stands level above it: turned text is hard to read.
    """
    left, right, bottom, top = x.start, x.end, y.start, y.end
    for value in y.ticks() if y_ticks is None else y_ticks:
        at = y(value)
        drawing.line((left, at), (right, at), stroke="grid")
        drawing.text(left - 8, at + 4, y_text(value), size=TICK_SIZE, colour="muted", anchor="end")
    for value in x.ticks(8) if x_ticks is None else x_ticks:
        at = x(value)
        drawing.line((at, top), (at, bottom), stroke="grid")
        drawing.text(at, bottom + 18, x_text(value), size=TICK_SIZE, colour="muted", anchor="middle")
    drawing.line((left, bottom), (right, bottom), stroke="axis")
    drawing.text(right, bottom + 37, x_title, size=TICK_SIZE, colour="muted", anchor="end")
    if y_title:
        drawing.text(0, top - 12, y_title, size=TICK_SIZE, colour="muted")


@dataclass(frozen=True)
class Label:
    """A name that belongs to a point."""

    x: float
    y: float
    text: str


def place_labels(
    drawing: Drawing,
    labels: Sequence[Label],
    *,
    bounds: tuple[float, float, float, float],
    avoid: Sequence[tuple[float, float, float, float]] = (),
    size: float = 12.5,
    gap: float = 10.0,
) -> None:
    """Write names beside their points so that none covers another, nor a point.

    Every name tries the places around its point, nearer ones first; one that finds no free place stands farther off,
    with a thin line to its point.

    Args:
        drawing: Where to.
        labels: Points and names.
        bounds: Left, top, right, bottom of what may be written on.
        avoid: Boxes to keep clear, likewise.
        size: Of the text.
        gap: Between point and text.
    """
    taken = [*avoid, *((label.x - 7, label.y - 7, label.x + 7, label.y + 7) for label in labels)]
    for label in labels:
        width, height = text_width(label.text, size), size
        tries = [
            (
                label.x + dx * reach + (0 if dx > 0 else -width if dx < 0 else -width / 2),
                label.y + dy * reach + 4,
                reach,
            )
            for reach in (gap, 1.7 * gap, 2.6 * gap, 4 * gap, 6 * gap)
            for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1.3), (0.8, -0.9), (0.8, 1.1), (-0.8, -0.9), (-0.8, 1.1))
        ]
        boxes = [((left, base - height + 2, left + width, base + 3), left, base, reach) for left, base, reach in tries]
        inside = [entry for entry in boxes if _within(entry[0], bounds)] or boxes
        box, left, base, reach = min(inside, key=lambda entry: _badness(entry[0], entry[3], taken))
        if reach > 1.7 * gap:
            end = (min(max(label.x, left), left + width), base + 2 if base < label.y else base - height + 2)
            drawing.line((label.x, label.y), end, stroke="axis", width=0.8)
        drawing.text(left, base, label.text, size=size, halo=True)
        taken.append(box)


def _badness(
    box: tuple[float, float, float, float], reach: float, taken: Sequence[tuple[float, float, float, float]]
) -> tuple[bool, float]:
    """Free places first, of these the nearest; otherwise the one that covers least."""
    covered = _overlap(box, taken)
    return (True, covered) if covered > 0.5 else (False, reach)


def _within(box: tuple[float, float, float, float], bounds: tuple[float, float, float, float]) -> bool:
    return box[0] >= bounds[0] and box[1] >= bounds[1] and box[2] <= bounds[2] and box[3] <= bounds[3]


def _overlap(box: tuple[float, float, float, float], others: Sequence[tuple[float, float, float, float]]) -> float:
    return sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in others
    )
