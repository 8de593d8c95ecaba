"""The table's columns, once for page and Markdown; and all figures as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vexport.bench.page.document import Document, GroupPart, Layer, RowPart
from vexport.bench.page.words import UNKNOWN, as_published, clean, number, percent, span, stability, times, times_span

LAYERS_SHOWN = 8


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        heading: Its name.
        text: A row's figure.
        small: What stands below it; empty for nothing.
        numeric: Whether it is set to the right and sorts by number.
        published: Whether its figures are somebody else's, from another device.
        needs_latency: Whether a row that failed has nothing here.
        sort: What a row is sorted by; the text where it is None.
    """

    heading: str
    text: Callable[[RowPart], str]
    small: Callable[[RowPart], str] = lambda _row: ""
    numeric: bool = True
    published: bool = False
    needs_latency: bool = True
    sort: Callable[[RowPart], float | None] | None = None


def columns(document: Document, group: GroupPart) -> list[Column]:
    """The columns that the group has figures for."""
    a100 = f"A100, {'TensorRT' if group.backend.lower().startswith('tensorrt') else 'PyTorch'}, ms"
    against = f"Time against {document.baseline_name}"
    measured = any(row.accuracy and row.accuracy.source == "measured" for row in group.rows)
    parts = (
        (True, Column("Network", lambda row: row.name, numeric=False, needs_latency=False)),
        (True, Column("Top-1", lambda row: percent(row.top1), _source, needs_latency=False, sort=lambda row: row.top1)),
        (True, Column("Median, ms", lambda row: number(row.median_ms), _median_span, sort=lambda row: row.median_ms)),
        (
            True,
            Column(against, _ratio, partial(_ratio_note, document), sort=_ratio_value),
        ),
        (True, Column("p90, ms", lambda row: number(row.p90_ms), sort=lambda row: row.p90_ms)),
        (True, Column("p99, ms", lambda row: number(row.p99_ms), sort=lambda row: row.p99_ms)),
        (
            any(row.device_median_ms is not None for row in group.rows),
            Column("GPU time, ms", lambda row: number(row.device_median_ms), sort=lambda row: row.device_median_ms),
        ),
        (True, Column("Images/s", lambda row: number(row.images_per_s), sort=lambda row: row.images_per_s)),
        (True, Column("Stability", _stability, lambda row: "; ".join(row.unstable_because), numeric=False)),
        (
            measured and any(row.published_top1 is not None for row in group.rows),
            _published("Top-1", lambda row: percent(row.published_top1), lambda row: row.published_top1),
        ),
        (
            any(row.published_a100_ms is not None for row in group.rows),
            _published(a100, lambda row: as_published(row.published_a100_ms), lambda row: row.published_a100_ms),
        ),
    )
    return [column for shown, column in parts if shown]


def _published(heading: str, text: Callable[[RowPart], str], sort: Callable[[RowPart], float | None]) -> Column:
    return Column(f"Published: {heading}", text, published=True, needs_latency=False, sort=sort)


def _stability(row: RowPart) -> str:
    return "unstable" if row.unstable else "stable"


def _median_span(row: RowPart) -> str:
    return span(row.run.median_interval_ms)


def _ratio_value(row: RowPart) -> float | None:
    return row.ratio.value if row.ratio else None


def _source(row: RowPart) -> str:
    if row.accuracy is None:
        return "not known"
    return row.accuracy.source + (f", {row.accuracy.images}\u00a0images" if row.accuracy.images else "")


def _ratio(row: RowPart) -> str:
    return times(row.ratio.value) if row.ratio else UNKNOWN


def _ratio_note(document: Document, row: RowPart) -> str:
    if row.network == document.baseline:
        return "baseline"
    if row.ratio is None:
        return "no baseline in this group"
    word = "slower" if row.ratio.low > 1 else "faster" if row.ratio.high < 1 else "no difference shown"
    return f"{times_span(row.ratio)}, {word}"


def failure(row: RowPart) -> str:
    """What stands in place of a latency; empty where there is one."""
    if row.measured:
        return ""
    if row.error is not None:
        return f"failed: {row.error}"
    return "; ".join(("not measured", *row.notes))


def details(row: RowPart) -> list[str]:
    """What ran: cells below `DETAILS`."""
    million = f"{row.parameters / 1e6:.1f} M" if row.parameters is not None else UNKNOWN
    size = f"{row.size_bytes / 1e6:.1f} MB" if row.size_bytes is not None else UNKNOWN
    shares = row.roofline.efficiency if row.roofline else None
    return [
        row.name,
        row.artifact or UNKNOWN,
        (row.artifact_sha256 or UNKNOWN)[:12],
        size,
        million,
        row.weights or UNKNOWN,
        number(row.gmacs, 3),
        UNKNOWN if row.depth is None else str(row.depth),
        str(row.count),
        UNKNOWN if row.cv is None else f"{row.cv:.1%}",
        number(row.roofline.bound_ms) if row.roofline else UNKNOWN,
        UNKNOWN if shares is None else f"{shares:.0%}",
    ]


DETAILS = (
    "Network", "Artifact", "SHA-256", "Size", "Parameters", "Weights", "GMACs", "Layers", "Calls", "Variation",
    "Bound, ms", "Bound by median",
)  # fmt: skip


def worst_layers(group: GroupPart) -> list[tuple[RowPart, Layer]]:
    """The layers of a group that lose most time against their bounds."""
    timed = [
        (row, layer)
        for row in group.rows
        if row.roofline
        for layer in row.roofline.layers
        if layer.time_ms is not None and layer.time_ms > layer.bound_ms
    ]
    return sorted(timed, key=lambda pair: pair[1].bound_ms - (pair[1].time_ms or 0.0))[:LAYERS_SHOWN]


def layer_cells(row: RowPart, layer: Layer) -> list[str]:
    """Cells below `LAYERS`."""
    share = UNKNOWN if layer.efficiency is None else f"{layer.efficiency:.0%}"
    return [row.name, layer.name, layer.operator, number(layer.time_ms), number(layer.bound_ms), share, layer.binds]


LAYERS = ("Network", "Layer", "Operator", "Time, ms", "Bound, ms", "Bound by time", "Bound by")

Cells = Sequence[tuple[str, Callable[[Document, GroupPart, RowPart], Any]]]

CSV_COLUMNS: Cells = (
    ("backend", lambda _d, group, _r: group.backend),
    ("precision", lambda _d, group, _r: group.precision),
    ("batch", lambda _d, group, _r: group.batch),
    ("channels", lambda _d, group, _r: group.input_size[0]),
    ("height", lambda _d, group, _r: group.input_size[1]),
    ("width", lambda _d, group, _r: group.input_size[2]),
    ("mode", lambda _d, group, _r: group.mode),
    ("network", lambda _d, _g, row: row.network),
    ("label", lambda _d, _g, row: row.name),
    ("family", lambda _d, _g, row: row.family),
    ("artifact", lambda _d, _g, row: row.artifact),
    ("artifact_sha256", lambda _d, _g, row: row.artifact_sha256),
    ("size_bytes", lambda _d, _g, row: row.size_bytes),
    ("parameters", lambda _d, _g, row: row.parameters),
    ("gmacs", lambda _d, _g, row: row.gmacs),
    ("depth", lambda _d, _g, row: row.depth),
    ("top1_percent", lambda _d, _g, row: row.top1),
    ("top1_source", lambda _d, _g, row: row.accuracy.source if row.accuracy else None),
    ("top1_images", lambda _d, _g, row: row.accuracy.images if row.accuracy else None),
    ("median_ms", lambda _d, _g, row: row.median_ms),
    ("median_low_ms", lambda _d, _g, row: row.run.median_interval_ms.low if row.run.median_interval_ms else None),
    ("median_high_ms", lambda _d, _g, row: row.run.median_interval_ms.high if row.run.median_interval_ms else None),
    ("p90_ms", lambda _d, _g, row: row.p90_ms),
    ("p99_ms", lambda _d, _g, row: row.p99_ms),
    ("cv", lambda _d, _g, row: row.cv),
    ("calls", lambda _d, _g, row: row.count),
    ("images_per_s", lambda _d, _g, row: row.images_per_s),
    ("device_median_ms", lambda _d, _g, row: row.device_median_ms),
    ("baseline", lambda document, _g, _r: document.baseline),
    ("ratio", lambda _d, _g, row: row.ratio.value if row.ratio else None),
    ("ratio_low", lambda _d, _g, row: row.ratio.low if row.ratio else None),
    ("ratio_high", lambda _d, _g, row: row.ratio.high if row.ratio else None),
    ("interval_level", lambda _d, _g, row: row.ratio.level if row.ratio else None),
    ("stability", lambda _d, _g, row: stability(row)),
    ("error", lambda _d, _g, row: row.error),
    ("bound_ms", lambda _d, _g, row: row.roofline.bound_ms if row.roofline else None),
    ("resident_bound_ms", lambda _d, _g, row: row.roofline.resident_bound_ms if row.roofline else None),
    ("binds", lambda _d, _g, row: row.roofline.binds if row.roofline else None),
    ("published_top1_percent", lambda _d, _g, row: row.published_top1),
    ("published_a100_ms", lambda _d, _g, row: row.published_a100_ms),
)


def write_csv(document: Document) -> str:
    """One line per row of the document, figures in full; empty where nothing is known."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([name for name, _ in CSV_COLUMNS])
    for group in document.groups:
        for row in group.rows:
            writer.writerow([_safe(value(document, group, row)) for _, value in CSV_COLUMNS])
    return stream.getvalue()


def _safe(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets an apostrophe before it."""
    value = clean(value) if isinstance(value, str) else value
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
