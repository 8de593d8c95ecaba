"""Drawings as SVG: text stays text, colours are classes that a style sheet fills in for light and dark."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from vexport.bench.page.canvas import COLOURS, FONT, MARGIN, Dots, Drawing, Path, Point, Shape, Text

_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def chart_css() -> str:
    """Rules for the classes that drawings use: fills `f-NAME`, strokes `s-NAME`; dark where the reader's screen is."""

    def rules(mode: int) -> str:
        return "".join(
            f".f-{name}{{fill:{pair[mode]}}}.s-{name}{{stroke:{pair[mode]}}}" for name, pair in COLOURS.items()
        )

    halo = ".halo{paint-order:stroke;stroke-width:3px;stroke-linejoin:round}"
    return f"{rules(0)}@media screen and (prefers-color-scheme:dark){{{rules(1)}}}{halo}"


def inline_svg(drawing: Drawing) -> str:
    """For a page that has `chart_css`."""
    return _svg(drawing, "")


def standalone_svg(drawing: Drawing) -> str:
    """A file of its own, with its colours, a background and a margin."""
    x, y, width, height = _frame(MARGIN, drawing)
    background = f'<rect class="f-surface" x="{x}" y="{y}" width="{width}" height="{height}"/>'
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n' + _svg(drawing, f"<style>{chart_css()}</style>{background}") + "\n"
    )


def _svg(drawing: Drawing, first: str) -> str:
    x, y, width, height = _frame(MARGIN if first else 0, drawing)
    size = f'viewBox="{x} {y} {width} {height}"' + (f' width="{width}" height="{height}"' if first else "")
    body = "".join(_shape(shape) for shape in drawing.shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{_text(drawing.title)}" '
        f'font-family="{FONT}" fill="none">{first}'
        f"<desc>{_text(drawing.description)}</desc>{body}</svg>"
    )


def _frame(margin: float, drawing: Drawing) -> tuple[str, str, str, str]:
    return _n(-margin), _n(-margin), _n(drawing.width + 2 * margin), _n(drawing.height + 2 * margin)


def _shape(shape: Shape) -> str:
    if isinstance(shape, Path):
        return _path(shape)
    return _dots(shape) if isinstance(shape, Dots) else _text_element(shape)


def _path(path: Path) -> str:
    data = "".join(_run(run, closed=path.fill is not None) for run in path.runs)
    classes = " ".join([f"f-{path.fill}"] * bool(path.fill) + [f"s-{path.stroke}"] * bool(path.stroke))
    more = f' stroke-width="{_n(path.width)}" stroke-linejoin="round"' if path.stroke else ""
    if path.dash:
        more += f' stroke-dasharray="{_n(path.dash[0])} {_n(path.dash[1])}"'
    if path.opacity < 1:
        more += f' fill-opacity="{_n(path.opacity)}"'
    inside = f"><title>{_text(path.title)}</title></path>" if path.title else "/>"
    return f'<path class="{classes}" d="{data}"{more}{inside}'


def _run(points: Iterable[Point], *, closed: bool) -> str:
    """Relative moves in tenths of a pixel: half as long as absolute ones."""
    data, last = "", (0, 0)
    for index, (x, y) in enumerate(points):
        here = (round(10 * x), round(10 * y))
        step = (here[0] - last[0], here[1] - last[1])
        if index == 0:
            data += f"M{_tenths(here[0])} {_tenths(here[1])}"
        elif step == (0, 0):
            continue
        elif step[1] == 0:
            data += f"h{_tenths(step[0])}"
        elif step[0] == 0:
            data += f"v{_tenths(step[1])}"
        else:
            data += f"l{_tenths(step[0])} {_tenths(step[1])}"
        last = here
    return data + ("z" if closed else "")


def _dots(dots: Dots) -> str:
    """Strokes without a length and with round ends: the shortest way to write many dots."""
    data = "".join(f"M{_n(x)} {_n(y)}h0" for x, y in dots.points)
    return (
        f'<path class="s-{dots.colour}" d="{data}" stroke-width="{_n(dots.diameter)}" stroke-linecap="round" '
        f'stroke-opacity="{_n(dots.opacity)}"/>'
    )


def _text_element(text: Text) -> str:
    more = f' text-anchor="{text.anchor}"' if text.anchor != "start" else ""
    more += ' font-weight="600"' if text.bold else ""
    halo = " halo s-surface" if text.halo else ""
    return (
        f'<text x="{_n(text.x)}" y="{_n(text.y)}" font-size="{_n(text.size)}" class="f-{text.colour}{halo}"{more}>'
        f"{_text(text.text)}</text>"
    )


def _text(text: str) -> str:
    """Escaped, without the control characters that XML forbids."""
    return escape(_FORBIDDEN.sub(" ", text))


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".") if abs(value - round(value)) > 0.04 else str(round(value))


def _tenths(value: int) -> str:
    whole, tenth = divmod(abs(value), 10)
    return ("-" if value < 0 else "") + (f"{whole}.{tenth}" if tenth else str(whole))
