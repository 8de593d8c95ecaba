"""The pictures: scales, ticks, names that cover nothing, the Pareto front, and both file formats."""

from __future__ import annotations

import io
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from tests.bench.page.document import synthetic_document
from vexport.bench.page.axes import Label, Scale, place_labels, spread_scale
from vexport.bench.page.canvas import COLOURS, Dots, Drawing, Path, Text
from vexport.bench.page.document import Document, validate
from vexport.bench.page.figures import make_figures
from vexport.bench.page.fonts import shorten, text_width
from vexport.bench.page.plots_accuracy import draw_accuracy_latency, family_series
from vexport.bench.page.plots_latency import draw_distributions, draw_tails
from vexport.bench.page.plots_roofline import draw_bounds, draw_roofline
from vexport.bench.page.png import render_png
from vexport.bench.page.svg import chart_css, inline_svg, standalone_svg
from vexport.bench.page.words import digits

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def document() -> Document:
    return validate(synthetic_document())


def changed(**values: Any) -> Document:
    """The document with other values in the row of VanillaNet-9 in FP32."""
    plain = synthetic_document()
    plain["groups"][0]["rows"][3].update(values)
    return validate(plain)


def test_every_picture_is_sound_xml_within_its_bounds(document: Document) -> None:
    figures = make_figures(document)
    assert len(figures) == 12
    assert len({figure.name for figure in figures}) == 12
    for figure in figures:
        root = ElementTree.fromstring(standalone_svg(figure.drawing))
        assert root.get("role") == "img"
        assert root.find(f"{SVG}desc") is not None
        for shape in figure.drawing.shapes:
            points = (
                [point for run in shape.runs for point in run] if isinstance(shape, Path)
                else shape.points if isinstance(shape, Dots) else [(shape.x, shape.y)]
            )  # fmt: skip
            for x, y in points:
                assert -5 <= x <= figure.drawing.width + 5, figure.name
                assert -5 <= y <= figure.drawing.height + 5, figure.name


def test_texts_of_a_picture_cover_each_other_nowhere(document: Document) -> None:
    for figure in make_figures(document):
        boxes = []
        for shape in figure.drawing.shapes:
            if isinstance(shape, Text):
                width = text_width(shape.text, shape.size) / 1.08
                left = shape.x - {"start": 0.0, "middle": width / 2, "end": width}[shape.anchor]
                boxes.append((left, shape.y - 0.7 * shape.size, left + width, shape.y, shape.text))
        for index, one in enumerate(boxes):
            for other in boxes[index + 1 :]:
                wide, high = (
                    min(one[2], other[2]) - max(one[0], other[0]),
                    min(one[3], other[3]) - max(one[1], other[1]),
                )
                assert wide <= 0 or high <= 0, (figure.name, one[4], other[4])


def test_colours_come_from_the_style_sheet_alone(document: Document) -> None:
    drawn = inline_svg(make_figures(document)[0].drawing)
    assert "#" not in re.sub(r"aria-label=\"[^\"]*\"", "", drawn)
    used = set(re.findall(r"\b[fs]-([a-z0-9]+)", drawn))
    assert used <= set(COLOURS)
    assert all(f".f-{name}{{" in chart_css() for name in used)


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("name", "least"), [("ink", 7), ("muted", 4.5), *((f"c{i}", 3) for i in range(6))])
def test_contrast(name: str, least: float, mode: int) -> None:
    low, high = sorted((luminance(COLOURS[name][mode]), luminance(COLOURS["surface"][mode])))
    assert (high + 0.05) / (low + 0.05) >= least


def test_png(document: Document) -> None:
    drawing = make_figures(document)[0].drawing
    image = Image.open(io.BytesIO(render_png(drawing)))
    assert image.size == (2 * (drawing.width + 36), 2 * (drawing.height + 36))
    assert len(image.convert("RGB").getcolors(100_000) or []) > 10


def test_png_of_names_that_its_font_lacks() -> None:
    drawing = Drawing(200, 40, "", "")
    drawing.text(5, 20, "日本 x 2.0 – ≥", halo=True, bold=True)
    assert render_png(drawing)[:4] == b"\x89PNG"


def test_the_description_names_the_front(document: Document) -> None:
    drawing = draw_accuracy_latency(document.groups[0], family_series(document))
    assert drawing is not None
    front = drawing.description.partition("than: ")[2]
    assert "ResNet-50" in front
    assert "VanillaNet-5" not in front
    assert "VanillaNet-9" not in front, "twice the time for 0.07 points, which nobody can tell from ResNet-50's"


def test_published_accuracies_are_hollow(document: Document) -> None:
    series = family_series(document)
    published, measured = (draw_accuracy_latency(group, series) for group in document.groups)
    assert published is not None
    assert measured is not None
    texts = [[shape.text for shape in drawing.shapes if isinstance(shape, Text)] for drawing in (published, measured)]
    assert any("hollow: accuracy as published" in text for text in texts[0])
    assert any("filled: accuracy measured" in text for text in texts[1])
    marks = [s for s in measured.shapes if isinstance(s, Path) and s.title]
    assert all(mark.fill != "surface" for mark in marks)


def test_the_slowest_call_is_drawn() -> None:
    """A call of fifty times the median is not cut off."""
    rounds = [[60_000_000] * 20, [60_000_000] * 19 + [3_000_000_000]]
    group = changed(samples_ns=rounds).groups[0]
    series = family_series(changed())
    strips, tails = draw_distributions(group, series), draw_tails(group, series)
    assert strips is not None
    assert tails is not None
    assert "VanillaNet-9 60.00 to 3000 ms" in strips.description
    right = max(x for shape in strips.shapes if isinstance(shape, Dots) for x, _ in shape.points)
    assert 640 < right <= strips.width - 14
    assert "VanillaNet-9 slowest 50.00" in tails.description


def test_samples_that_are_all_the_same_or_only_one() -> None:
    for rounds in ([[5_000_000] * 10], [[5_000_000]]):
        group = changed(samples_ns=rounds).groups[0]
        series = family_series(changed())
        for drawing in (draw_distributions(group, series), draw_tails(group, series)):
            assert drawing is not None
            ElementTree.fromstring(inline_svg(drawing))


def test_a_roofline_without_layer_times(document: Document) -> None:
    plain = synthetic_document()
    for row in plain["groups"][0]["rows"]:
        for layer in row["roofline"]["layers"]:
            layer["time_ms"] = None
        del row["roofline"]["peaks"]
    bare = validate(plain)
    drawing = draw_roofline(bare.groups[0], bare.peaks, family_series(bare))
    assert drawing is not None
    assert drawing.description.startswith("0 timed layers of 7 networks.")
    assert "peak fp32 310, int8 900" in drawing.description
    assert draw_roofline(bare.groups[0], None, family_series(bare)) is None


def test_a_network_that_was_counted_and_not_timed() -> None:
    plain = synthetic_document()
    for row in plain["groups"][0]["rows"]:
        row["roofline"].update(measured_ms=None, efficiency=None, resident_efficiency=None)
    bare = validate(plain)
    drawing = draw_bounds(bare.groups[0], family_series(bare))
    assert drawing is not None
    assert "VanillaNet-9 not timed, bound" in drawing.description


def test_a_latency_below_both_bounds_is_said() -> None:
    found = changed()
    drawing = draw_bounds(found.groups[1], family_series(found))
    assert drawing is not None
    texts = [shape.text for shape in drawing.shapes if isinstance(shape, Text)]
    row = found.groups[1].rows[3]
    assert row.roofline is not None
    assert row.roofline.efficiency is not None
    assert ("beyond both bounds" in texts) == (row.roofline.efficiency > 1)


def test_families_keep_their_colours(document: Document) -> None:
    assert family_series(document) == {"VanillaNet": 0, "ResNet": 1, "Swin": 2}
    assert family_series(changed(family="ConvNeXt"))["ConvNeXt"] == 3
    assert family_series(changed(family=None))["others"] == 3


def test_names_in_a_crowd_cover_neither_each_other_nor_a_point() -> None:
    drawing = Drawing(600, 400, "", "")
    labels = [Label(300 + 6 * index, 200 + 3 * (index % 3), f"network-{index}") for index in range(8)]
    place_labels(drawing, labels, bounds=(0, 0, 600, 400))
    boxes = [
        (text.x, text.y - 10, text.x + text_width(text.text, text.size), text.y)
        for text in drawing.shapes
        if isinstance(text, Text)
    ]
    assert len(boxes) == 8
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        for label in labels:
            assert not (one[0] < label.x < one[2] and one[1] < label.y < one[3])


@pytest.mark.parametrize(
    ("low", "high", "log", "wanted"),
    [
        (0, 100, False, [0, 20, 40, 60, 80, 100]),
        (71.4, 84.2, False, [72, 74, 76, 78, 80, 82, 84]),
        (1, 1000, True, [1, 3, 10, 30, 100, 300, 1000]),
        (30, 200, True, [30, 40, 50, 60, 80, 100, 150, 200]),
    ],
)
def test_ticks_are_round(low: float, high: float, log: bool, wanted: list[float]) -> None:
    assert Scale(low, high, 0, 100, log).ticks() == pytest.approx(wanted)


def test_scales() -> None:
    assert Scale(1, 100, 0, 200, log=True)(10) == pytest.approx(100)
    assert Scale(0, 10, 100, 0)(2.5) == pytest.approx(75)
    alone = spread_scale([5.0], 0, 100, log=True)
    assert alone.low < 5 < alone.high


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (62.1, "62.10"), (7.64, "7.640"), (0.49, "0.4900"), (0.00123456, "0.001235"), (158.24, "158.2"),
        (12345.6, "12346"), (99999.9, "100000"), (0, "0"), (1.0, "1.000"), (0.000012345, "0.00001234"),
    ],
)  # fmt: skip
def test_digits(value: float, text: str) -> None:
    found = digits(value)
    assert "e" not in found
    assert float(found) == pytest.approx(value, rel=1e-3)
    if value >= 1e-4:
        assert found == text


def test_shortened_names_fit() -> None:
    assert shorten("ResNet-50", 200) == "ResNet-50"
    cut = shorten("a" * 500, 100)
    assert cut.endswith("...")
    assert text_width(cut) <= 100
