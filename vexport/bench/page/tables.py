"""The table's columns, once for page and Markdown; and all figures as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from vexport.bench.device import DEVICE
from vexport.bench.page.document import MOST_LAYERS_OFF, Document, GroupPart, Interval, Layer, RowPart
from vexport.bench.page.words import UNKNOWN, as_published, clean, number, percent, span, stability
from vexport.bench.report import published_clock, times, times_span

LAYERS_SHOWN = 8
PUBLISHED = "Published: "
NOT_JUDGED = "not judged: mostly floating point"


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
    against = f"Time against {document.baseline_name}"
    baseline = next((row for row in group.rows if row.network == document.baseline), None)
    measured = any(row.accuracy and row.accuracy.source == "measured" for row in group.rows)
    clocks = dict.fromkeys(("PyTorch", published_clock(group.backend, group.precision)))
    floats = {row.against_float.precision: None for row in group.rows if row.against_float}
    parts = (
        (True, Column("Network", lambda row: row.name, numeric=False, needs_latency=False)),
        (True, Column("Top-1", lambda row: percent(row.top1), _source, needs_latency=False, sort=lambda row: row.top1)),
        (True, Column("Median, ms", lambda row: number(row.median_ms), _median_span, sort=lambda row: row.median_ms)),
        (True, Column(against, _ratio, partial(_ratio_note, document, baseline), sort=lambda row: _value(row.ratio))),
        (
            bool(floats),
            Column(
                f"Time against its {'/'.join(floats)}",
                _float_ratio,
                _float_note,
                sort=lambda row: _value(row.against_float),
            ),
        ),
        (True, Column("p90, ms", lambda row: number(row.told_p90_ms), sort=lambda row: row.told_p90_ms)),
        (True, Column("p99, ms", lambda row: number(row.told_p99_ms), sort=lambda row: row.told_p99_ms)),
        (
            any(row.device_median_ms is not None for row in group.rows),
            Column(
                "GPU time, ms",
                lambda row: number(row.device_median_ms),
                _gpu_note,
                sort=lambda row: row.device_median_ms,
            ),
        ),
        (True, Column("Images/s", lambda row: number(row.images_per_s), sort=lambda row: row.images_per_s)),
        (
            any(row.int8_share is not None for row in group.rows),
            Column("Ran in INT8", _int8_share, lambda _row: "of the arithmetic", sort=lambda row: row.int8_share),
        ),
        (True, Column("Stability", _stability, lambda row: "; ".join(row.unstable_because), numeric=False)),
        (
            measured and any(row.published_top1 is not None for row in group.rows),
            _published("Top-1", lambda row: percent(row.published_top1), lambda row: row.published_top1),
        ),
    )
    published = [
        (
            any(clock in row.published_latencies_ms for row in group.rows),
            _published(f"A100, {clock}, batch 1, ms", partial(_a100, clock), partial(_a100_ms, clock)),
        )
        for clock in clocks
    ]
    return [column for shown, column in (*parts, *published) if shown]


def _a100_ms(clock: str, row: RowPart) -> float | None:
    return row.published_latencies_ms.get(clock)


def _a100(clock: str, row: RowPart) -> str:
    return as_published(_a100_ms(clock, row))


def _published(heading: str, text: Callable[[RowPart], str], sort: Callable[[RowPart], float | None]) -> Column:
    return Column(f"{PUBLISHED}{heading}", text, published=True, needs_latency=False, sort=sort)


def _stability(row: RowPart) -> str:
    return "unstable" if row.unstable else "stable"


def _median_span(row: RowPart) -> str:
    return span(row.run.median_interval_ms)


def _value(ratio: Interval | None) -> float | None:
    return ratio.value if ratio else None


def _source(row: RowPart) -> str:
    if row.accuracy is None:
        return "not known"
    return row.accuracy.source + (f", {row.accuracy.images}\u00a0images" if row.accuracy.images else "")


def _ratio(row: RowPart) -> str:
    return times(row.ratio.value) if row.ratio else UNKNOWN


def _gpu_note(row: RowPart) -> str:
    """What the host did meanwhile, and whether the GPU waited for it."""
    parts = {name: [value for part in rounds for value in part] for name, rounds in row.run.parts_ns.items()}
    said = [f"{name} {number(median(values) / 1e6)}" for name, values in parts.items() if values and name != DEVICE]
    return ", ".join([*said, *(["waits for the host"] if (row.device_ms or {}).get("waits_for_host") else [])])


def _int8_share(row: RowPart) -> str:
    return UNKNOWN if row.int8_share is None else f"{row.int8_share:.0%}"


def _ratio_note(document: Document, baseline: RowPart | None, row: RowPart) -> str:
    if row.network == document.baseline:
        return "baseline"
    if row.ratio is None:
        return "no baseline in this group"
    judged = not row.mostly_float and not (baseline and baseline.mostly_float)
    return _in_words(row.ratio) if judged else f"{times_span(row.ratio)}, {NOT_JUDGED}"


def _float_ratio(row: RowPart) -> str:
    return times(row.against_float.value) if row.against_float else UNKNOWN


def _float_value(row: RowPart) -> float | None:
    return _value(row.against_float)


def _float_note(row: RowPart) -> str:
    if row.against_float is None:
        return ""
    return f"{times_span(row.against_float)}, {NOT_JUDGED}" if row.mostly_float else _in_words(row.against_float)


def _in_words(ratio: Interval) -> str:
    return f"{times_span(ratio)}, {verdict(ratio)}"


def verdict(ratio: Interval) -> str:
    """A ratio in a word or two."""
    return "slower" if ratio.low > 1 else "faster" if ratio.high < 1 else "no difference shown"


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
        for layer in row.timed_layers
        if layer.time_ms is not None and layer.time_ms > layer.bound_ms
    ]
    return sorted(timed, key=lambda pair: pair[1].bound_ms - (pair[1].time_ms or 0.0))[:LAYERS_SHOWN]


def layer_sums(group: GroupPart) -> list[str]:
    """What each row's profiled layers sum to beside its latency, and whose times are withheld for it."""
    said = []
    for row in group.rows:
        off, profile = row.layers_off, row.roofline.profile if row.roofline else None
        if row.roofline is None or profile is None or off is None:
            continue
        latency = row.roofline.measured_ms or row.median_ms
        text = (
            f"{row.name}: the profiled layers sum to {number(profile.sum_ms)} ms, its latency is {number(latency)} ms"
        )
        if abs(off) > MOST_LAYERS_OFF:
            text += f". They differ by {abs(off):.0%}: the profile was disturbed, and its layers' times are not shown"
        said.append(text + ".")
    return said


def layer_cells(row: RowPart, layer: Layer) -> list[str]:
    """Cells below `LAYERS`."""
    share = UNKNOWN if layer.efficiency is None else f"{layer.efficiency:.0%}"
    return [row.name, layer.name, layer.operator, number(layer.time_ms), number(layer.bound_ms), share, layer.binds]


LAYERS = ("Network", "Layer", "Operator", "Time, ms", "Bound, ms", "Bound by time", "Bound by")


def csv_line(document: Document, group: GroupPart, row: RowPart) -> dict[str, Any]:
    """All figures of a row by their columns' names."""
    channels, height, width = group.input_size
    middle, ratio, beside, roofline = row.run.median_interval_ms, row.ratio, row.against_float, row.roofline
    own = row.model_dump(include={
        "network", "family", "artifact", "artifact_sha256", "size_bytes", "parameters", "gmacs", "depth", "median_ms",
        "p90_ms", "p99_ms", "cv", "images_per_s", "error", "weights", "published_a100_ms",
    })  # fmt: skip
    found = {
        "backend": group.backend, "precision": group.precision, "batch": group.batch, "channels": channels,
        "height": height, "width": width, "mode": group.mode, "label": row.name,
        "top1_percent": row.top1, "top1_source": row.accuracy.source if row.accuracy else None,
        "top1_images": row.accuracy.images if row.accuracy else None, "calls": row.count,
        "median_low_ms": middle.low if middle else None, "median_high_ms": middle.high if middle else None,
        "device_median_ms": row.device_median_ms, "baseline": document.baseline, "ratio": _value(ratio),
        "ratio_low": ratio.low if ratio else None, "ratio_high": ratio.high if ratio else None,
        "interval_level": ratio.level if ratio else None, "against_float": _value(beside),
        "against_float_low": beside.low if beside else None, "against_float_high": beside.high if beside else None,
        "against_float_precision": beside.precision if beside else None, "int8_share": row.int8_share,
        "stability": stability(row),
        "bound_ms": roofline.bound_ms if roofline else None,
        "resident_bound_ms": roofline.resident_bound_ms if roofline else None,
        "binds": roofline.binds if roofline else None, "published_top1_percent": row.published_top1,
        "published_a100_pytorch_ms": _a100_ms("PyTorch", row),
        "published_a100_tensorrt_fp32_ms": _a100_ms("TensorRT FP32", row),
        "published_a100_tensorrt_fp16_ms": _a100_ms("TensorRT FP16", row),
    }  # fmt: skip
    return own | found


CSV_COLUMNS = (
    "backend", "precision", "batch", "channels", "height", "width", "mode", "network", "label", "family", "artifact",
    "artifact_sha256", "weights", "size_bytes", "parameters", "gmacs", "depth", "top1_percent", "top1_source",
    "top1_images", "median_ms", "median_low_ms", "median_high_ms", "p90_ms", "p99_ms", "cv", "calls", "images_per_s",
    "device_median_ms", "baseline", "ratio", "ratio_low", "ratio_high", "interval_level", "against_float",
    "against_float_low", "against_float_high", "against_float_precision", "int8_share", "stability", "error",
    "bound_ms", "resident_bound_ms", "binds", "published_top1_percent", "published_a100_ms",
    "published_a100_pytorch_ms", "published_a100_tensorrt_fp32_ms", "published_a100_tensorrt_fp16_ms",
)  # fmt: skip


def write_csv(document: Document) -> str:
    """One line per row of the document, figures in full; empty where nothing is known."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for group in document.groups:
        for row in group.rows:
            line = csv_line(document, group, row)
            writer.writerow({name: _safe(value) for name, value in line.items()})
    return stream.getvalue()


def _safe(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets an apostrophe before it."""
    value = clean(value) if isinstance(value, str) else value
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
