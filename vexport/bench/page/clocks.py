"""One VanillaNet beside its rival by every clock: those of the paper, and those of this measurement.

The paper's own figures say how much the clock decides: what is far ahead in eager PyTorch is hardly so in TensorRT.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vexport.bench.accuracy import Top1, is_as_accurate
from vexport.bench.advice import SUBJECT
from vexport.bench.page.document import Document, Interval, RowPart
from vexport.bench.page.tables import verdict
from vexport.bench.page.words import as_published, digits, short_title
from vexport.bench.report import relation, times, times_span

WHOSE = "published by the authors"


@dataclass(frozen=True)
class Reading:
    """Both networks by one clock.

    Args:
        clock: What it is.
        published: Whether it is the paper's.
        own_ms: Latency of the VanillaNet.
        rival_ms: Of its rival.
        ratio: The first by the second; a published one has no interval.
        unstable: Whether one of the two is marked so.
    """

    clock: str
    published: bool
    own_ms: float
    rival_ms: float
    ratio: Interval
    unstable: bool = False

    @property
    def name(self) -> str:
        """Of the clock, with the device where it is another."""
        return f"A100, {self.clock}" if self.published else self.clock

    @property
    def words(self) -> str:
        """As `1.95x slower (1.83 to 2.10)`; without an interval where there is none."""
        said = relation(self.ratio)
        return said.partition(" (")[0] if self.published else said


@dataclass(frozen=True)
class Clocks:
    """All readings of two networks.

    Args:
        own: Name of the VanillaNet.
        rival: Of the baseline.
        readings: The published ones first.
    """

    own: str
    rival: str
    readings: tuple[Reading, ...]

    @property
    def published(self) -> tuple[Reading, ...]:
        return tuple(reading for reading in self.readings if reading.published)

    @property
    def measured(self) -> tuple[Reading, ...]:
        return tuple(reading for reading in self.readings if not reading.published)

    @property
    def text(self) -> str:
        """What the published readings say, and what that means for the measured ones."""
        parts = [
            f"{one.words} in {one.clock} ({as_published(one.own_ms)} against {as_published(one.rival_ms)} ms)"
            for one in self.published
        ]
        said = f"By the authors' own figures on one A100, {self.own} is {', '.join(parts)} than {self.rival}."
        ratios = [one.ratio.value for one in self.published]
        if len(ratios) > 1 and max(ratios) > 1.2 * min(ratios):
            said += " Same networks, same GPU: the clock decides."
        return f"{said} Published figures have no interval, and enter none of ours."


def clocks(document: Document) -> Clocks | None:
    """The VanillaNet that the paper holds against the baseline, by every clock; None where the document has no pair.

    It is the fastest one that is published with the baseline's accuracy.
    """
    rows = [row for group in document.groups for row in group.rows if row.published_top1 and row.published_latencies_ms]
    rival = next((row for row in rows if row.network == document.baseline), None)
    if rival is None:
        return None
    able = [row for row in rows if row.kin == SUBJECT and is_as_accurate(_published(row), _published(rival))]
    own = min(able, key=lambda row: row.published_latencies_ms.get("PyTorch", math.inf), default=None)
    if own is None:
        return None
    both = [name for name in own.published_latencies_ms if name in rival.published_latencies_ms]
    readings = [_read(name, own.published_latencies_ms[name], rival.published_latencies_ms[name]) for name in both]
    readings += _measured(document, own, rival)
    return Clocks(own.name, rival.name, tuple(readings)) if readings else None


def _published(row: RowPart) -> Top1:
    assert row.published_top1 is not None
    return Top1(row.published_top1)


def _read(name: str, own_ms: float, rival_ms: float) -> Reading:
    by = own_ms / rival_ms
    return Reading(name, True, own_ms, rival_ms, Interval(value=by, low=by, high=by))


def _measured(document: Document, own: RowPart, rival: RowPart) -> list[Reading]:
    """Groups of one image at the size of the published figures in which both took turns."""
    found = []
    for group in document.groups:
        rows = {row.network: row for row in reversed(group.rows) if row.measured and row.published_latencies_ms}
        one, other = rows.get(own.network), rows.get(rival.network)
        if one and other and (one.mostly_float or other.mostly_float):
            continue  # an INT8 file that did not run in INT8 is no clock of INT8
        if one and other and one.ratio and one.median_ms and other.median_ms:
            name = short_title(document, group)
            unstable = one.unstable or other.unstable
            found.append(Reading(name, False, one.median_ms, other.median_ms, one.ratio, unstable))
    return found


def clock_headings(found: Clocks) -> Sequence[str]:
    return ("Clock", f"{found.own} against {found.rival}", f"{found.own}, ms", f"{found.rival}, ms", "Whose figures")


def clock_lines(found: Clocks) -> list[list[str]]:
    """Cells below `clock_headings`."""
    lines = []
    for one in found.readings:
        show = as_published if one.published else digits
        span = "" if one.published else f" ({times_span(one.ratio)})"
        whose = WHOSE if one.published else f"measured here{', unstable' if one.unstable else ''}"
        by = f"{times(one.ratio.value)}{span}, {verdict(one.ratio)}"
        lines.append([one.name, by, show(one.own_ms), show(one.rival_ms), whose])
    return lines
