"""Numbers and short statements in the one form that page, Markdown and charts share."""

from __future__ import annotations

import math

from vexport.bench.page.document import Document, GroupPart, Interval, RowPart

UNKNOWN = "–"
SUBJECT = "VanillaNet"
INCOMPLETE = "Incomplete: the measurement was interrupted; some networks or groups are missing."


def digits(value: float, count: int = 4) -> str:
    """So many significant digits, or all before the point; never as a power of ten."""
    if value == 0:
        return "0"
    places = count - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(places, 0)}f}"


def number(value: float | None, count: int = 4) -> str:
    """`digits`, or a dash for what is not known."""
    return UNKNOWN if value is None else digits(value, count)


def span(interval: Interval | None, count: int = 4) -> str:
    """Both ends of an interval; empty where there is none."""
    return f"{digits(interval.low, count)} to {digits(interval.high, count)}" if interval else ""


def times(value: float) -> str:
    """A ratio, as `1.98×`."""
    if 0.95 < value < 1.05 and value != 1:  # 1.004 is more than 1, and must not look like it
        return f"{value:.3f}×"
    return f"{value:.2f}×" if value >= 0.095 else f"{digits(value, 2)}×"


def times_span(interval: Interval) -> str:
    """A ratio's interval, as `1.90 to 2.05`."""
    return f"{times(interval.low)[:-1]} to {times(interval.high)[:-1]}"


def percent(value: float | None) -> str:
    """Two decimals, as papers give accuracies."""
    return UNKNOWN if value is None else f"{value:.2f}\u00a0%"


def compare(row: RowPart, rival: RowPart, ratio: Interval) -> str:
    """Which of two is faster, by how much, as a sentence without its full stop."""
    if ratio.low > 1:
        return f"{row.name} is slower than {rival.name}: it takes {times(ratio.value)} the time ({times_span(ratio)})"
    if ratio.high < 1:
        gain = Interval(value=1 / ratio.value, low=1 / ratio.high, high=1 / ratio.low, level=ratio.level)
        return f"{row.name} is {times(gain.value)} faster than {rival.name} ({times_span(gain)})"
    return f"{row.name} and {rival.name} cannot be told apart: {times(ratio.value)} the time ({times_span(ratio)})"


def stability(row: RowPart) -> str:
    """`stable`, or why not."""
    if row.error is not None:
        return "failed"
    if row.median_ms is None:
        return "not measured"
    return "unstable: " + "; ".join(row.unstable_because) if row.unstable else "stable"


def clean(text: str) -> str:
    """Text without the control characters and lone surrogates that no page may have."""
    return "".join(sign if sign.isprintable() or sign in "\n\u00a0" else " " for sign in text)


def as_published(value: float | None) -> str:
    """A figure with the digits that it was published with."""
    return UNKNOWN if value is None else f"{value:g}"


def accuracies(row: RowPart, rival: RowPart) -> str:
    """Both accuracies with their source, as a sentence."""
    assert row.accuracy is not None
    assert rival.accuracy is not None
    mine, other = percent(row.top1), percent(rival.top1)
    if row.accuracy.source == rival.accuracy.source:
        return f"Top-1 as {row.accuracy.source}: {mine} against {other}."
    return f"Top-1: {mine} ({row.accuracy.source}) against {other} ({rival.accuracy.source})."


def accuracy_note(row: RowPart) -> str:
    """Top-1 with its source, as `79.87 % published`."""
    if row.accuracy is None:
        return "not known"
    images = f", {row.accuracy.images} images" if row.accuracy.images else ""
    return f"{percent(row.accuracy.top1_percent)} {row.accuracy.source}{images}"


def device_name(environment: dict[str, object], group: GroupPart | None = None) -> str:
    """What the group ran on: the GPU where its backend names one, the processor otherwise."""
    if group and group.device:
        return group.device
    backend = group.backend.lower() if group else ""
    gpus = environment.get("gpus")
    if isinstance(gpus, list) and gpus and any(word in backend for word in ("cuda", "gpu", "tensorrt", "trt")):
        return str(gpus[0])
    return str(environment.get("cpu") or "this device")


def title(document: Document) -> str:
    """The question that the report answers."""
    names = {device_name(document.environment, group) for group in document.groups}
    where = names.pop() if len(names) == 1 else "this machine"
    if any(row.kin == SUBJECT for group in document.groups for row in group.rows):
        return f"Is {SUBJECT} faster than {document.baseline_name} at its accuracy, on {where}?"
    return f"Latency beside {document.baseline_name}, on {where}"
