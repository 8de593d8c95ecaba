"""Numbers and short statements in the one form that page, Markdown and charts share."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from vexport.bench.advice import SUBJECT
from vexport.bench.page.document import Document, GroupPart, Interval, RowPart, ThroughputPart
from vexport.bench.report import compared

UNKNOWN = "–"
INCOMPLETE = "Incomplete: the measurement was interrupted; some networks, groups or rooflines are missing."


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


def throughputs(parts: Sequence[ThroughputPart]) -> list[str]:
    """What each network gains from larger batches, in words; nothing where one batch size was measured."""
    said = []
    for part in parts:
        best = max(part.batches, key=lambda one: one.images_per_s.value)
        enough = next((one for one in part.batches if one.nearly_best), best)
        first = part.batches[0]
        text = (
            f"{part.label}, {part.precision}, {part.backend}: {digits(first.images_per_s.value, 3)} images/s at batch "
            f"{first.batch}, at most {digits(best.images_per_s.value, 3)} ({span(best.images_per_s, 3)}) at batch "
            f"{best.batch}"
        )
        if enough.batch < best.batch:
            text += f"; batch {enough.batch} reaches 95 % of that at {digits(enough.latency_ms, 3)} ms a call"
        said.append(text + ".")
    return said


def percent(value: float | None) -> str:
    """Two decimals, as papers give accuracies."""
    return UNKNOWN if value is None else f"{value:.2f}\u00a0%"


def compare(row: RowPart, rival: RowPart, ratio: Interval) -> str:
    """Which of two is faster, by how much, as a sentence without its full stop."""
    return compared(row.name, rival.name, ratio)


def int8_shares(rows: Sequence[RowPart]) -> str:
    """How much of each row's arithmetic ran in INT8, as `0% of ResNet-50's arithmetic ran in INT8`."""
    parts = [f"{row.int8_share:.0%} of {row.name}'s" for row in rows if row.int8_share is not None]
    return f"{', '.join(parts)} arithmetic ran in INT8"


def repeat_command(command: str) -> str:
    """The command that measures the whole again; one that went on with an earlier run says so by `--resume`."""
    return re.sub(r"(?<=\s)--resume(?:\s+|$)", "", command).rstrip()


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
    """A figure with the digits that it was published with: the paper's have two decimals."""
    if value is None:
        return UNKNOWN
    return f"{value:.2f}" if value == round(value, 2) else f"{value:g}"


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


def short_title(document: Document, group: GroupPart) -> str:
    """The fewest words that tell a group from the others."""
    others = [other for other in document.groups if other is not group]
    backend = any(other.backend != group.backend for other in others)
    told = backend and group.precision.upper() in group.backend.upper().split()
    parts = [] if told else [group.precision]
    if any(other.batch != group.batch for other in others):
        parts.append(f"batch {group.batch}")
    if any(other.input_size != group.input_size for other in others):
        parts.append(f"{group.input_size[1]}x{group.input_size[2]}")
    if backend:
        parts.append(group.backend)
    return ", ".join(parts)


def weights_note(document: Document) -> str:
    """Whose accuracies the published ones are not; empty where none is published."""
    rows = [row for group in document.groups for row in group.rows]
    published = [row for row in rows if row.measured and row.accuracy and row.accuracy.source == "published"]
    random = list(dict.fromkeys(row.name for row in published if row.weights == "random"))
    if not published:
        return ""
    if not random:
        return "Accuracies marked published are the authors', of their weights: not of the files that were timed here."
    who = "" if len(random) == len({row.name for row in published}) else f"of {', '.join(random)} "
    return (
        "Accuracies marked published are the authors', of their trained weights. The files that were timed here "
        f"{who}have random weights: latency hardly depends on a weight's value, but these files have "
        "no accuracy of their own."
    )


def notes(group: GroupPart) -> list[str]:
    """What the rows of a group say besides their figures, each once, with the networks where not all say it."""
    rows = [row for row in group.rows if not row.figures_only]
    found: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            found.setdefault(note, []).append(row.name)
    return [f"{note}." if len(who) == len(rows) > 1 else f"{', '.join(who)}: {note}." for note, who in found.items()]


def last_words(group: GroupPart) -> list[str]:
    """The last lines of each network that failed and wrote some."""
    found = ((row, (row.failure or {}).get("stderr") or ()) for row in group.rows)
    return [f"{row.name} ended with: {' / '.join(map(str, lines))}" for row, lines in found if lines]


def title(document: Document) -> str:
    """The question that the report answers."""
    names = {device_name(document.environment, group) for group in document.groups}
    where = names.pop() if len(names) == 1 else "this machine"
    if any(row.kin == SUBJECT for group in document.groups for row in group.rows):
        return f"Is {SUBJECT} faster than {document.baseline_name} at its accuracy, on {where}?"
    return f"Latency beside {document.baseline_name}, on {where}"
