"""Accuracy against latency with the Pareto front, and depth against accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from vexport.bench.accuracy import pareto_front
from vexport.bench.page.axes import Label, Scale, draw_frame, place_labels, spread_scale
from vexport.bench.page.canvas import SERIES, Drawing
from vexport.bench.page.document import Document, GroupPart, RowPart
from vexport.bench.page.fonts import shorten, text_width
from vexport.bench.page.words import accuracy_note, digits, percent

WIDTH, HEIGHT = 720.0, 430.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 14.0, 74.0, 46.0
NAME_WIDTH = 180.0
FIRST_SERIES = ("VanillaNet", "ResNet", "Swin")  # the same colours in every report


def family_series(document: Document) -> dict[str, int]:
    """Every family with its colour and shape."""
    found = dict.fromkeys(row.kin for group in document.groups for row in group.rows)
    others = [family for family in found if family not in FIRST_SERIES]
    numbers = {family: index for index, family in enumerate((*FIRST_SERIES, *others))}
    return {family: numbers[family] for family in sorted(found, key=numbers.__getitem__)}


def legend(
    drawing: Drawing, entries: Sequence[tuple[int, bool, str]], *, x: float = 0.0, y: float = 14.0, size: float = 12.5
) -> None:
    """Marks with their names in a line, from the left; (series, hollow, name)."""
    for series, hollow, full in entries:
        name = shorten(full, NAME_WIDTH, size)
        width = 16 + text_width(name, size)
        if x > 0 and x + width > drawing.width:
            x, y = 0.0, y + 20
        drawing.marker(x + 7, y - 4, series, size=5.5, hollow=hollow)
        drawing.text(x + 17, y, name, size=size)
        x += width + 20


def draw_accuracy_latency(group: GroupPart, series: Mapping[str, int]) -> Drawing | None:
    """One point per network with a latency and an accuracy; None where there is none."""
    rows = [row for row in group.rows if row.measured and row.top1 is not None]
    if not rows:
        return None
    points = [(row.median_ms or 0.0, row.top1 or 0.0) for row in rows]
    front = pareto_front([(row.median_ms or 0.0, row.known_accuracy) for row in rows if row.known_accuracy])
    best = ", ".join(
        f"{rows[index].name} ({digits(points[index][0])} ms, {percent(points[index][1])})" for index in front
    )
    drawing = Drawing(
        WIDTH,
        HEIGHT,
        f"Accuracy against latency, {group.title}",
        f"{len(rows)} networks. Of its accuracy, none is faster than: {best}.",
    )
    x = spread_scale([point[0] for point in points], LEFT, WIDTH - RIGHT, log=True, room=0.09)
    y = spread_scale([point[1] for point in points], HEIGHT - BOTTOM, TOP, room=0.1)
    draw_frame(drawing, x, y, x_title="median latency of a call, ms (logarithmic)", y_title="top-1, %")
    steps = _front_steps([(x(points[index][0]), y(points[index][1])) for index in front], x.end)
    drawing.line(*steps, stroke="axis", width=1.6, dash=(5, 4))
    around = [
        (min(a[0], b[0]) - 2, min(a[1], b[1]) - 2, max(a[0], b[0]) + 2, max(a[1], b[1]) + 2) for a, b in pairwise(steps)
    ]
    labels = []
    for row, (latency, accuracy) in zip(rows, points, strict=True):
        at = (x(latency), y(accuracy))
        interval = row.run.median_interval_ms
        if interval and interval.low > 0:
            low, high = (x(max(min(value, x.high), x.low)) for value in (interval.low, interval.high))
            drawing.line((low, at[1]), (high, at[1]), stroke=f"c{series[row.kin] % SERIES}", width=2)
            around.append((low - 2, at[1] - 3, high + 2, at[1] + 3))
        assert row.accuracy is not None
        note = f"{row.name}: {digits(latency)} ms, {accuracy_note(row)}"
        hollow = row.accuracy.source == "published"
        drawing.marker(*at, series[row.kin], hollow=hollow, title=note)
        labels.append(Label(*at, shorten(row.name, NAME_WIDTH) + (" (unstable)" if row.unstable else "")))
    place_labels(drawing, labels, bounds=(LEFT, TOP - 4, WIDTH, HEIGHT - BOTTOM - 2), avoid=around)
    _legend_of(drawing, rows, series, front=True)
    return drawing


def _front_steps(front: Sequence[tuple[float, float]], right: float) -> list[tuple[float, float]]:
    """Up to the next network's latency one can have no more than this one's accuracy."""
    steps = [front[0]]
    for last, here in pairwise(front):
        steps += [(here[0], last[1]), here]
    return [*steps, (right, front[-1][1])]


def _legend_of(drawing: Drawing, rows: Sequence[RowPart], series: Mapping[str, int], *, front: bool = False) -> None:
    shown = [family for family in series if any(row.kin == family for row in rows)]
    legend(drawing, [(series[family], False, family) for family in shown])
    sources = {row.accuracy.source for row in rows if row.accuracy}
    words = {
        frozenset({"published"}): "hollow: accuracy as published",
        frozenset({"measured"}): "filled: accuracy measured",
        frozenset({"published", "measured"}): "filled: accuracy measured; hollow: as published",
    }
    said = words[frozenset(sources)]
    if front:
        drawing.line((0, 31), (26, 31), stroke="axis", width=1.6, dash=(5, 4))
        drawing.text(32, 35, f"Pareto front (up and to the left is better); {said}", size=12, colour="muted")
    else:
        drawing.text(0, 35, said, size=12, colour="muted")


def draw_depth_accuracy(document: Document, series: Mapping[str, int]) -> Drawing | None:
    """One point per network whose depth and accuracy are known, as its first row has them; None where there is none."""
    rows: dict[str, RowPart] = {}
    for row in (row for group in document.groups for row in group.rows):
        if row.depth is not None and row.accuracy is not None:
            rows.setdefault(row.name, row)
    if not rows:
        return None
    shown = list(rows.values())
    depths, accuracies = [float(row.depth or 0) for row in shown], [row.top1 or 0.0 for row in shown]
    said = ", ".join(f"{row.name} {row.depth} layers {percent(row.top1)}" for row in shown)
    drawing = Drawing(WIDTH, HEIGHT, "Depth against accuracy", f"{said}.")
    x = Scale(0.0, 1.12 * max(*depths, 1.0), LEFT, WIDTH - RIGHT)
    y = spread_scale(accuracies, HEIGHT - BOTTOM, TOP, room=0.1)
    draw_frame(drawing, x, y, x_title="depth, layers", y_title="top-1, %")
    labels = []
    for row, depth, accuracy in zip(shown, depths, accuracies, strict=True):
        at = (x(depth), y(accuracy))
        assert row.accuracy is not None
        note = f"{row.name}: {row.depth} layers, {accuracy_note(row)}"
        drawing.marker(*at, series[row.kin], hollow=row.accuracy.source == "published", title=note)
        labels.append(Label(*at, shorten(row.name, NAME_WIDTH)))
    place_labels(drawing, labels, bounds=(LEFT, TOP - 4, WIDTH, HEIGHT - BOTTOM - 2))
    _legend_of(drawing, shown, series)
    return drawing
