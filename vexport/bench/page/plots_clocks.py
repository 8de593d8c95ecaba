"""How many times its rival's time a network takes, clock by clock: a line at 1 parts faster from slower."""

from __future__ import annotations

from vexport.bench.page.axes import Scale, draw_frame, spread_scale, tick_text
from vexport.bench.page.canvas import Drawing
from vexport.bench.page.clocks import Clocks
from vexport.bench.page.fonts import shorten, text_width

WIDTH, ROW = 720.0, 32.0
TOP, BOTTOM = 44.0, 46.0
RIGHT = 190.0
FASTER, SLOWER = 2, 1  # series: green and orange, as the page has them; shapes tell the same


def draw_clocks(found: Clocks) -> Drawing:
    """One line per clock."""
    readings = found.readings
    names = [one.name for one in readings]
    left = min(230.0, 12 + max(text_width(name) for name in names))
    height = TOP + ROW * len(readings) + BOTTOM
    said = "; ".join(f"{name} {one.words}" for name, one in zip(names, readings, strict=True))
    title = f"{found.own} against {found.rival}, clock by clock"
    drawing = Drawing(WIDTH, height, title, f"{said}.")
    ends = [value for one in readings for value in (one.ratio.low, one.ratio.high)]
    x = spread_scale([1 / 1.15, 1.15, *ends], left, WIDTH - RIGHT, log=True, room=0.06)
    y = Scale(0, 1, height - BOTTOM, TOP)
    what = f"time of {found.own} by that of {found.rival} (logarithmic)"
    draw_frame(drawing, x, y, x_title=what, y_title="", y_ticks=(), x_ticks=x.ticks(6), x_text=_tick)
    drawing.line((x(1), TOP - 8), (x(1), height - BOTTOM), width=1.8)
    drawing.text(x(1) - 8, TOP - 12, "faster", size=12.5, colour=f"c{FASTER}", anchor="end", bold=True)
    drawing.text(x(1) + 8, TOP - 12, "slower", size=12.5, colour=f"c{SLOWER}", bold=True)
    drawing.text(0, 14, "filled: measured here; hollow: published", size=12, colour="muted")
    for index, (name, one) in enumerate(zip(names, readings, strict=True)):
        at = TOP + ROW * (index + 0.5)
        series = SLOWER if one.ratio.low > 1 else FASTER if one.ratio.high < 1 else 5
        drawing.text(0, at + 4, shorten(name, left - 12))
        drawing.line((x(1), at), (x(one.ratio.value), at), stroke=f"c{series}", width=1.2)
        if not one.published:
            drawing.line((x(one.ratio.low), at), (x(one.ratio.high), at), stroke=f"c{series}", width=4)
        drawing.marker(x(one.ratio.value), at, series, hollow=one.published, title=f"{name}: {one.words}")
        drawing.text(WIDTH - RIGHT + 12, at + 4, one.words, size=12.5)
    return drawing


def _tick(value: float) -> str:
    return f"{tick_text(value)}x"
