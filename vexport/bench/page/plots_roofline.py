"""The roofline: layers and networks below what the device can do, and the bounds of each network beside its latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vexport.bench.page.axes import Label, Scale, draw_frame, place_labels, spread_scale, tick_text
from vexport.bench.page.canvas import SERIES, Dots, Drawing, Point
from vexport.bench.page.document import GroupPart, Layer, Peaks, Roofline, RowPart
from vexport.bench.page.fonts import shorten, text_width
from vexport.bench.page.plots_accuracy import NAME_WIDTH, legend
from vexport.bench.page.words import digits

WIDTH, HEIGHT = 720.0, 460.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 14.0, 50.0, 46.0
ROW = 46.0


def group_peaks(group: GroupPart, peaks: Peaks | None) -> Peaks | None:
    """What the group's rooflines were held against; the document's peaks where they do not say."""
    return next((row.roofline.peaks for row in group.rows if row.roofline and row.roofline.peaks), peaks)


def draw_roofline(group: GroupPart, peaks: Peaks | None, series: Mapping[str, int]) -> Drawing | None:
    """Rate against intensity, both logarithmic; None where nothing was both counted and timed."""
    peaks = group_peaks(group, peaks)
    networks = [(row, row.roofline) for row in group.rows if row.roofline and _network_rate(row.roofline)]
    if peaks is None or not networks:
        return None
    layers = {id(row): [layer for layer in row.timed_layers if _layer_rate(layer)] for row, _ in networks}
    roofs = _roofs(peaks, [layer for found in layers.values() for layer in found])
    bandwidth, top_rate = peaks.bandwidth.per_s, max(roofs.values())
    intensities = [layer.intensity for found in layers.values() for layer in found]
    intensities += [roofline.intensity for _, roofline in networks]
    rates = [_layer_rate(layer) for found in layers.values() for layer in found]
    rates += [_network_rate(roofline) for _, roofline in networks]
    x = spread_scale(
        [*intensities, *(0.25 * rate / bandwidth for rate in roofs.values()), 2 * top_rate / bandwidth],
        LEFT,
        WIDTH - RIGHT,
        log=True,
        room=0.03,
    )
    y = spread_scale([*rates, top_rate * 1.6], HEIGHT - BOTTOM, TOP, log=True, room=0.03)
    unit, factor = ("Tera", 1e12) if top_rate >= 2e12 else ("Giga", 1e9)
    timed = sum(map(len, layers.values()))
    said = "; ".join(f"{row.name} {digits(_network_rate(roofline) / factor, 3)}" for row, roofline in networks)
    drawing = Drawing(
        WIDTH, HEIGHT, f"Roofline, {group.title}",
        f"{timed} timed layers of {len(networks)} networks. {unit}-operations per second: {said}; peak "
        + ", ".join(f"{name} {digits(rate / factor, 3)}" for name, rate in roofs.items()) + ".",
    )  # fmt: skip
    draw_frame(
        drawing, x, y, x_title="operations per byte (logarithmic)",
        y_title=f"{unit}-operations per second (logarithmic)", y_text=lambda value: tick_text(value / factor),
    )  # fmt: skip
    for row, _ in networks:
        points = tuple((x(layer.intensity), y(_layer_rate(layer))) for layer in layers[id(row)])
        drawing.shapes.append(Dots(points, f"c{series[row.kin] % SERIES}"))
    dots = [(x(layer.intensity), y(_layer_rate(layer))) for found in layers.values() for layer in found]
    taken = _draw_roofs(drawing, x, y, peaks, roofs, factor, unit)
    labels = []
    for row, roofline in networks:
        at = (x(roofline.intensity), y(_network_rate(roofline)))
        note = f"{row.name}: {digits(_network_rate(roofline) / factor)} {unit}-operations per second"
        drawing.marker(*at, series[row.kin], size=8, title=note)
        labels.append(Label(*at, shorten(row.name, NAME_WIDTH)))
    place_labels(
        drawing,
        labels,
        bounds=(LEFT, TOP, WIDTH, HEIGHT - BOTTOM - 2),
        avoid=[*taken, *((px - 2, py - 2, px + 2, py + 2) for px, py in dots)],
        gap=12,
    )
    shown = [family for family in series if any(row.kin == family for row, _ in networks)]
    legend(drawing, [(series[family], False, family) for family in shown])
    said = "large: whole networks; small dots: their layers" if timed else "networks; no layer was timed for itself"
    drawing.text(WIDTH - 4, 14, said, size=12, colour="muted", anchor="end")
    return drawing


def _layer_rate(layer: Layer) -> float:
    """Operations per second; 0 where it was not timed, or does not multiply."""
    return layer.flops / layer.time_ms * 1e3 if layer.time_ms and layer.intensity > 0 else 0.0


def _network_rate(roofline: Roofline) -> float:
    return roofline.flops / roofline.measured_ms * 1e3 if roofline.measured_ms and roofline.intensity > 0 else 0.0


def _roofs(peaks: Peaks, layers: Sequence[Layer]) -> dict[str, float]:
    """Peak rates of the precisions that the layers multiply in; all where none of them was measured."""
    wanted = {"int8" if layer.precision == "uint8" else layer.precision for layer in layers}
    rates = {name: rate.per_s for name, rate in peaks.operations.items()}
    return {name: rate for name, rate in rates.items() if name in wanted} or rates


def _draw_roofs(
    drawing: Drawing, x: Scale, y: Scale, peaks: Peaks, roofs: Mapping[str, float], factor: float, unit: str
) -> list[tuple[float, float, float, float]]:
    """The slope of memory and the ceilings of arithmetic; returns the boxes of their names."""
    bandwidth, top_rate = peaks.bandwidth.per_s, max(roofs.values())
    foot = max(x.low, y.low / bandwidth)
    drawing.line((x(foot), y(foot * bandwidth)), (x(top_rate / bandwidth), y(top_rate)), width=1.8)
    boxes = []
    for name, rate in roofs.items():
        drawing.line((x(rate / bandwidth), y(rate)), (x.end, y(rate)), width=1.8)
        text = f"{name} {digits(rate / factor, 3)} {unit[0]}FLOP/s"
        text = text.replace("FLOP", "OP") if name == "int8" else text
        width = text_width(text, 12)
        drawing.text(x.end, y(rate) - 6, text, size=12, anchor="end", bold=True, halo=True)
        boxes.append((x.end - width, y(rate) - 20, x.end, y(rate) + 2))
    text = f"memory {digits(bandwidth / 1e9, 3)} GB/s"
    begin, end = (x(foot), y(foot * bandwidth)), (x(top_rate / bandwidth), y(top_rate))
    width = text_width(text, 12)
    # Left of the slope where that leaves room, high enough up; otherwise right of it.
    share = max(0.3, (width + 16) / (end[0] - begin[0]))
    beside = share <= 0.9
    share = share if beside else 0.4
    at = (begin[0] + (end[0] - begin[0]) * share, begin[1] + (end[1] - begin[1]) * share)
    left, base = (at[0] - width - 12, at[1] - 4) if beside else (at[0] + 10, at[1] + 14)
    drawing.text(left, base, text, size=12, bold=True, halo=True)
    boxes.append((left, base - 14, left + width, base + 4))
    return [*boxes, *((x(rate / bandwidth), y(rate) - 2, x.end, y(rate) + 2) for rate in roofs.values()),
            *_along(begin, end)]  # fmt: skip


def _along(begin: Point, end: Point, steps: int = 24) -> list[tuple[float, float, float, float]]:
    """Small boxes along a line."""
    middles = [
        (begin[0] + (end[0] - begin[0]) * step / steps, begin[1] + (end[1] - begin[1]) * step / steps)
        for step in range(steps + 1)
    ]
    return [(x - 5, y - 5, x + 5, y + 5) for x, y in middles]


def draw_bounds(group: GroupPart, series: Mapping[str, int]) -> Drawing | None:
    """Per network its latency, and below it what the device could do; None where no network was counted."""
    shown: list[tuple[RowPart, Roofline]] = [(row, row.roofline) for row in group.rows if row.roofline]
    if not shown:
        return None
    left = min(190.0, 12 + max(text_width(row.name) for row, _ in shown))
    top, bottom = 40.0, 46.0
    height = top + ROW * len(shown) + bottom
    highest = max(
        value for _, found in shown for value in (found.measured_ms or 0.0, found.bound_ms, found.resident_bound_ms)
    )
    x = Scale(0.0, highest * 1.02 or 1.0, left, WIDTH - 190)
    said = "; ".join(f"{row.name} {_bound_text(found)}" for row, found in shown)
    drawing = Drawing(WIDTH, height, f"Bounds and latency, {group.title}", f"{said}.")
    draw_frame(drawing, x, Scale(0, 1, height - bottom, top), x_title="ms", y_title="", y_ticks=(), x_ticks=x.ticks(6))
    _bound_key(drawing)
    for index, (row, found) in enumerate(shown):
        base = top + ROW * index + 8
        drawing.text(0, base + 18, shorten(row.name, left - 12), size=13)
        if found.measured_ms:
            drawing.box(
                x.start,
                base,
                x(found.measured_ms) - x.start,
                14,
                f"c{series[row.kin] % SERIES}",
                title=f"{row.name}: {digits(found.measured_ms)} ms",
            )
        drawing.box(
            x.start, base + 16, x(found.bound_ms) - x.start, 8, "muted", title=f"bound: {digits(found.bound_ms)} ms"
        )
        at = x(found.resident_bound_ms)
        drawing.line((at, base - 3), (at, base + 27), width=2)
        end = max(x(found.measured_ms or 0), x(found.bound_ms), at) + 8
        drawing.text(end, base + 11, f"{digits(found.measured_ms)} ms" if found.measured_ms else "not timed", size=12.5)
        drawing.text(end, base + 26, _share_text(found), size=11.5, colour="muted")
    return drawing


def _bound_key(drawing: Drawing) -> None:
    drawing.box(0, 6, 22, 10, "c0")
    drawing.text(28, 16, "measured", size=12, colour="muted")
    drawing.box(100, 8, 22, 8, "muted")
    drawing.text(128, 16, "bound, all layers through memory", size=12, colour="muted")
    drawing.line((340, 3), (340, 21), width=2)
    drawing.text(348, 16, "bound, caches hold what lies between layers", size=12, colour="muted")


def _share_text(found: Roofline) -> str:
    """How much of the device is used, by the bound that can hold."""
    for share, which in ((found.efficiency, "of the bound"), (found.resident_efficiency, "of the cached bound")):
        if share is not None and share <= 1:
            return f"{share:.0%} {which} ({found.binds})"
    return f"{found.binds} binds" if found.efficiency is None else "beyond both bounds"


def _bound_text(found: Roofline) -> str:
    measured = f"{digits(found.measured_ms)} ms" if found.measured_ms else "not timed"
    return f"{measured}, bound {digits(found.bound_ms)} ms, with caches {digits(found.resident_bound_ms)} ms"
