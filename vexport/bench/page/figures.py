"""Every picture of the report, with its name, its heading and what to see in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vexport.bench.page.canvas import Drawing
from vexport.bench.page.clocks import clocks
from vexport.bench.page.document import Document, GroupPart, RowPart
from vexport.bench.page.plots_accuracy import draw_accuracy_latency, draw_depth_accuracy, family_series
from vexport.bench.page.plots_clocks import draw_clocks
from vexport.bench.page.plots_latency import draw_distributions, draw_tails
from vexport.bench.page.plots_roofline import draw_bounds, draw_roofline, group_peaks


@dataclass(frozen=True)
class Figure:
    """A picture of the report.

    Args:
        name: File name without its ending.
        heading: Above it.
        caption: Below it.
        drawing: The picture.
        group: Place of the group that it belongs to; None for what belongs to the whole document.
    """

    name: str
    heading: str
    caption: str
    drawing: Drawing
    group: int | None = None


def make_figures(document: Document) -> list[Figure]:
    """All pictures that the document has figures for."""
    series = family_series(document)
    found = []
    for index, group in enumerate(document.groups):
        prefix = f"{index + 1}-{_slug(group)}"
        drawn = (
            (
                "accuracy-latency",
                "Accuracy against latency",
                draw_accuracy_latency(group, series),
                _missing_note(group),
            ),
            ("distribution", "Latency of every call", draw_distributions(group, series), DISTRIBUTION),
            ("slow-calls", "How slow the slow calls are", draw_tails(group, series), TAILS),
            ("roofline", "Roofline", draw_roofline(group, document.peaks, series), _roofline_note(document, group)),
            ("bounds", "What the device could do", draw_bounds(group, series), BOUNDS),
        )
        found += [
            Figure(f"{prefix}-{name}", heading, caption, drawing, index)
            for name, heading, drawing, caption in drawn
            if drawing is not None
        ]
    by_clock = clocks(document)
    if by_clock is not None:
        found.append(Figure("clocks", "The same two networks, clock by clock", CLOCKS, draw_clocks(by_clock)))
    depth = draw_depth_accuracy(document, series)
    if depth is not None:
        found.append(Figure("depth-accuracy", "Depth against accuracy", _depth_note(document), depth))
    return found


DISTRIBUTION = (
    "From the fastest call to the slowest, pixel by pixel; the height says how often a latency occurred, for each "
    "network by itself."
)
TAILS = (
    "Each network's calls in order, as multiples of its own median. A line that stays at 1 is a network whose calls "
    "all take the same time; the last point is its slowest call."
)
BOUNDS = (
    "No network is faster than its arithmetic at the device's peak rate, nor than its bytes at the device's bandwidth. "
    "Where caches hold what lies between layers, the upright mark is the bound and the grey bar is not."
)
CLOCKS = "Left of the line at 1 the VanillaNet is faster. Thick lines are intervals; published figures have none."
DEPTH = "Each network as in its first row of this document. Fewer layers are not less time."


def _depth_note(document: Document) -> str:
    counted = document.settings.get("depth")
    return f"Depth: {counted}. {DEPTH}" if counted else f"Layers as the graph has them. {DEPTH}"


def _slug(group: GroupPart) -> str:
    return re.sub("[^a-z0-9]+", "-", group.title.lower()).strip("-")[:60].strip("-")


def _missing_note(group: GroupPart) -> str:
    """Which networks have no point, and why."""
    missing = [f"{row.name} ({_why_missing(row)})" for row in group.rows if not row.measured or row.top1 is None]
    said = (
        "Short lines across the points are the medians' intervals. On the front are those that no faster one on it "
        "makes needless, being of their accuracy."
    )
    return f"{said} Not shown: {', '.join(missing)}." if missing else said


def _why_missing(row: RowPart) -> str:
    if row.measured:
        return "accuracy not known"
    return "not measured" if row.error is None else "failed"


def _roofline_note(document: Document, group: GroupPart) -> str:
    peaks = group_peaks(group, document.peaks)
    if peaks is None:
        return ""
    said = (
        f"The roofs were measured on {peaks.device} in the same run, the slope by copying and reading memory, the "
        "ceilings by matrix products or convolutions, whichever was faster. Bytes are counted as if every layer read "
        "and wrote memory: what a cache holds may lie above the slope. Layers that do not multiply are not shown."
    )
    return f"{said} The roofs varied by {peaks.unsteady:.0%}: other programs ran." if peaks.unsteady else said
