"""Every measured call: where the calls of each network lie, and how far its slow ones go beyond its median."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vexport.bench.page.axes import Scale, draw_frame, spread_scale, tick_text
from vexport.bench.page.canvas import SERIES, Dots, Drawing
from vexport.bench.page.document import GroupPart, RowPart
from vexport.bench.page.fonts import shorten, text_width
from vexport.bench.page.words import digits

WIDTH = 720.0
ROW = 46.0
NAME_SIZE = 13.0
_SMOOTH = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9
TAIL_HEIGHT = 400.0
CURVE_POINTS = 90
DASHES = (None, (7.0, 3.0), (2.0, 2.0), (12.0, 3.0))

Floats = npt.NDArray[np.float64]


def calls_ms(row: RowPart) -> Floats:
    """All calls of a row in milliseconds, ascending."""
    values = np.array([value for part in row.samples_ns for value in part], dtype=np.float64) / 1e6
    return np.sort(values[values > 0])


def _with_calls(group: GroupPart) -> list[tuple[RowPart, Floats]]:
    found = [(row, calls_ms(row)) for row in group.rows]
    return [(row, calls) for row, calls in found if len(calls)]


def draw_distributions(group: GroupPart, series: Mapping[str, int]) -> Drawing | None:
    """One strip per network on a common axis, from its fastest call to its slowest; None without samples."""
    shown = _with_calls(group)
    if not shown:
        return None
    left = min(190.0, 12 + max(text_width(row.name, NAME_SIZE) for row, _ in shown))
    top, bottom = 40.0, 46.0
    height = top + ROW * len(shown) + bottom
    said = "; ".join(
        f"{row.name} {digits(float(calls[0]))} to {digits(float(calls[-1]))} ms, "
        f"median {digits(float(np.median(calls)))}"
        for row, calls in shown
    )
    drawing = Drawing(WIDTH, height, f"Latency of every call, {group.title}", f"{said}.")
    ends = [float(value) for _, calls in shown for value in (calls[0], calls[-1])]
    x = spread_scale(ends, left, WIDTH - 14, log=True, room=0.04)
    y = Scale(0, 1, height - bottom, top)
    draw_frame(drawing, x, y, x_title="latency of a call, ms (logarithmic)", y_title="", y_ticks=())
    _strip_key(drawing)
    for index, (row, calls) in enumerate(shown):
        base = top + ROW * index + 34
        name = shorten(row.name, left - 12, NAME_SIZE)
        drawing.text(0, base - 6, name, size=NAME_SIZE)
        note = "failed later" if row.error else "unstable" if row.unstable else f"{len(calls)} calls"
        drawing.text(0, base + 9, note, size=11, colour="muted")
        _strip(drawing, x, base, calls, f"c{series[row.kin] % SERIES}")
    return drawing


def _strip_key(drawing: Drawing) -> None:
    """What the signs of a strip mean."""
    drawing.line((3, 4), (3, 22), stroke="ink", width=2.5)
    drawing.text(10, 17, "median", size=12, colour="muted")
    drawing.line((70, 9), (70, 19), stroke="ink", width=1.2)
    drawing.line((76, 9), (76, 19), stroke="ink", width=1.2)
    drawing.text(83, 17, "90th and 99th percentile", size=12, colour="muted")
    drawing.shapes.append(Dots(((252.0, 13.0),), "c0", 4.5, 0.9))
    drawing.text(260, 17, "a call beyond the 99th; none is left out", size=12, colour="muted")


def _strip(drawing: Drawing, x: Scale, base: float, calls: Floats, colour: str) -> None:
    """How often each latency occurred, pixel by pixel, above a line from the fastest call to the slowest."""
    at = _pixels(x, calls)
    first, last = math.floor(at[0]) - 2, math.ceil(at[-1]) + 2
    counts, _ = np.histogram(at, bins=np.arange(first - 0.5, last + 1.5))
    smooth = np.convolve(counts, _SMOOTH, mode="same")
    heights = 24 * smooth / smooth.max()
    drawing.line((float(at[0]), base), (float(at[-1]), base), stroke="axis")
    for begin, end in _runs(heights > 0.15):
        outline = [(float(first + place), base - float(heights[place])) for place in range(begin, end)]
        drawing.area([(outline[0][0], base), *outline, (outline[-1][0], base)], colour, opacity=0.75)
    beyond = np.unique(np.round(at[calls > np.percentile(calls, 99)]))
    drawing.shapes.append(Dots(tuple((float(place), base) for place in beyond), colour, 4.5, 0.9))
    for share, up, width in ((50, 27, 2.5), (90, 6, 1.2), (99, 6, 1.2)):
        place = float(_pixels(x, np.percentile(calls, [share]))[0])
        drawing.line((place, base - up), (place, base + 6), stroke="ink", width=width)


def _pixels(x: Scale, values: Floats) -> Floats:
    found: Floats = x.start + np.log(values / x.low) / math.log(x.high / x.low) * (x.end - x.start)
    return found


def _runs(inside: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Stretches where it holds, as (begin, end)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], inside.astype(np.int8), [0]))))
    return [(int(begin), int(end)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def draw_tails(group: GroupPart, series: Mapping[str, int]) -> Drawing | None:
    """Latency by percentile, as multiples of each network's own median; None without samples."""
    shown = _with_calls(group)
    if not shown:
        return None
    right = min(170.0, 26 + max(text_width(row.name, 12.5) for row, _ in shown))
    relative = [(row, calls / float(np.median(calls))) for row, calls in shown]
    most = max(len(calls) for _, calls in relative)
    x = Scale(0.0, max(math.log10(most), 1.05), 44.0, WIDTH - right)
    y = spread_scale(
        [1.0, 1.02, *(float(value) for _, calls in relative for value in (calls[0], calls[-1]))],
        TAIL_HEIGHT - 46, 40, log=True, room=0.05,
    )  # fmt: skip
    said = "; ".join(
        f"{row.name} slowest {float(calls[-1]):.2f}, 99th {float(np.percentile(calls, 99)):.2f}"
        for row, calls in relative
    )
    drawing = Drawing(WIDTH, TAIL_HEIGHT, f"Slow calls, {group.title}", f"Times the median: {said}.")
    shares = [share for share in (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999) if _nines(share) <= x.high + 1e-9]
    draw_frame(
        drawing, x, y,
        x_title="share of calls that take no longer, %", y_title="times the network's own median (logarithmic)",
        x_ticks=[_nines(share) for share in shares],
        x_text=lambda value: f"{100 * (1 - 10**-value):.6g}", y_text=lambda value: f"{tick_text(value)}x",
    )  # fmt: skip
    ends, shown_before = [], list[RowPart]()
    for row, calls in relative:
        places = np.unique(
            np.round((1 - 10 ** -np.linspace(0, math.log10(len(calls)), CURVE_POINTS)) * len(calls)).astype(int)
        )
        places = places[places < len(calls)]
        points = [(x(_nines(float(place) / len(calls))), y(float(calls[place]))) for place in places]
        number = series[row.kin]
        # Networks of one family share a colour; their dashes differ.
        nth = sum(other.kin == row.kin for other in shown_before)
        shown_before.append(row)
        drawing.line(*points, stroke=f"c{number % SERIES}", width=1.8, dash=DASHES[nth % len(DASHES)])
        ends.append((points[-1], number, row.name))
    _name_ends(drawing, ends, x.end, (38.0, TAIL_HEIGHT - 46))
    return drawing


def _nines(share: float) -> float:
    """0 for 0, 1 for 90 %, 2 for 99 % ..."""
    return -math.log10(1 - share)


def _name_ends(
    drawing: Drawing,
    ends: Sequence[tuple[tuple[float, float], int, str]],
    right: float,
    bounds: tuple[float, float],
) -> None:
    """Names of curves in a column at the right, as near to their ends as they fit below each other."""
    order = sorted(ends, key=lambda entry: entry[0][1])
    step = min(17.0, (bounds[1] - bounds[0]) / max(len(order), 1))
    wanted = [point[1] for point, _, _ in order]
    places = list(wanted)
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + step)
    if places and places[-1] > bounds[1]:
        places[-1] = bounds[1]
        for index in reversed(range(len(places) - 1)):
            places[index] = min(places[index], places[index + 1] - step)
    for (point, number, name), at in zip(order, places, strict=True):
        colour = f"c{number % SERIES}"
        drawing.line(point, (right + 6, at), stroke=colour, width=0.8, dash=(2, 2))
        drawing.marker(*point, number, size=4)
        drawing.marker(right + 13, at, number, size=4)
        drawing.text(right + 21, at + 4, shorten(name, drawing.width - right - 22, 12.5), size=12.5)
