"""Attention maps as pictures: one of each image, and a sheet of all of them.

A row is the image and, for each network, the image in grey under its map. Maps are drawn in viridis, whose lightness
rises evenly; small images are enlarged pixel by pixel. What is right and wrong is said in words.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vexport.deps import needs
from vexport.pipeline.explain_looks import Look, Row

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

    from vexport.run.runner import Array

SIDE = 224  # of a cell's picture, in pixels
GAP = 16
MARGIN = 20
LINE = 21
TEXT, TITLE = 15, 19
LINES = 3  # below each picture
STRENGTH = 0.6  # of the map over the image
GREYS = (50, 205)  # of the image below it
CLASS_LETTERS = 20  # of a class's name, so that what follows it has room
INK, MUTED, SURFACE, FRAME = "#1b2028", "#59626f", "#ffffff", "#b9c0c9"
BAR = (160, 12)
NO_MAP = {"no gradient": "no positive gradient", "not positive": "nowhere above 0", "not finite": "NaN or infinite"}


@dataclass(frozen=True)
class Column:
    """A network in the pictures: its name and its layer."""

    name: str
    layer: str


@dataclass(frozen=True)
class Block:
    """Rows under a title; `empty` is said where there are none."""

    title: str
    rows: tuple[Row, ...]
    empty: str = ""


def draw(blocks: Sequence[Block], columns: Sequence[Column], class_names: Sequence[str]) -> bytes:
    """Draw blocks of rows side by side, as PNG.

    Args:
        blocks: From left to right.
        columns: The networks, in the order of the rows' looks.
        class_names: One per class.
    """
    from PIL import Image, ImageDraw

    rows = max(1, *(len(block.rows) for block in blocks))
    block_width = (1 + len(columns)) * (SIDE + GAP) - GAP
    head, row_height = 3 * LINE + 16, SIDE + LINES * LINE + GAP + 8
    width = 2 * MARGIN + len(blocks) * block_width + (len(blocks) - 1) * 3 * GAP
    canvas = Image.new("RGB", (width, 2 * MARGIN + head + rows * row_height + 2 * LINE), SURFACE)
    brush = ImageDraw.Draw(canvas)
    for index, block in enumerate(blocks):
        left = MARGIN + index * (block_width + 3 * GAP)
        _write(brush, (left, MARGIN), block.title, block_width, size=TITLE)
        for place, (name, layer) in enumerate([("image", ""), *((one.name, one.layer) for one in columns)]):
            x = left + place * (SIDE + GAP)
            _write(brush, (x, MARGIN + LINE + 10), name, SIDE)
            _write(brush, (x, MARGIN + 2 * LINE + 10), layer, SIDE, colour=MUTED)
        for number, row in enumerate(block.rows):
            _draw_row(canvas, brush, (left, MARGIN + head + number * row_height), row, class_names)
        if not block.rows:
            _write(brush, (left, MARGIN + head), block.empty, block_width, colour=MUTED)
    _draw_bar(canvas, brush, canvas.height - MARGIN - LINE)
    stream = io.BytesIO()
    canvas.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def overlay(picture: Array, values: Array) -> Array:
    """An image in grey under a map.

    Args:
        picture: (H, W, 3), uint8.
        values: (H, W), 0 to 1.

    Returns:
        (H, W, 3), uint8.
    """
    import numpy as np

    with needs("explain"):
        from matplotlib import colormaps

    colours = 255 * colormaps["viridis"](values)[..., :3]
    # Between dark and light grey: over black and white the same value would look like two.
    grey = GREYS[0] + (GREYS[1] - GREYS[0]) * _grey(picture) / 255
    mixed: Array = np.rint((1 - STRENGTH) * grey[..., None] + STRENGTH * colours).astype(np.uint8)
    return mixed


def enlarge(picture: Array, side: int = SIDE) -> Image:
    """An image that fits a square cell: whole multiples of small pixels, else resampled; never distorted."""
    from PIL import Image

    found = Image.fromarray(picture)
    longest = max(found.size)
    if longest * 2 <= side:
        factor = side // longest
        return found.resize((found.width * factor, found.height * factor), Image.Resampling.NEAREST)
    scaled = [max(1, round(length * side / longest)) for length in found.size]
    return found.resize((scaled[0], scaled[1]), Image.Resampling.BICUBIC)


def describe_look(look: Look, label: int | None, class_names: Sequence[str]) -> list[str]:
    """The lines below a map: the answer, whether it is right, and what the map is of."""
    found = look.attention
    if found.probability != found.probability:
        answer = "answers with NaN"
    else:
        answer = f"answers {_class(class_names[found.answer])}, {100 * found.probability:.0f} %"
    verdict = "" if label is None else "right" if look.is_right else f"wrong: it is {_class(class_names[label])}"
    if found.state != "map":
        return [answer, verdict, f"no map: {NO_MAP[found.state]}"]
    return [answer, verdict, f"map of {class_names[found.label]}" if found.label != found.answer else ""]


def _draw_row(canvas: Image, brush: ImageDraw, corner: tuple[int, int], row: Row, class_names: Sequence[str]) -> None:
    left, top = corner
    known = "true class not known" if row.image.label is None else f"true class: {class_names[row.image.label]}"
    assert row.looks[0].picture is not None, "kept for those that are drawn"
    cells: list[tuple[Array, list[str]]] = [(row.looks[0].picture, [known, _file_name(row.image.shown)])]
    for look in row.looks:
        assert look.picture is not None
        lines = describe_look(look, row.image.label, class_names)
        cells.append((_heat(look), lines))
    for index, (pixels, lines) in enumerate(cells):
        x = left + index * (SIDE + GAP)
        image = enlarge(pixels)
        at = (x + (SIDE - image.width) // 2, top + (SIDE - image.height) // 2)
        canvas.paste(image, at)
        brush.rectangle((at[0] - 1, at[1] - 1, at[0] + image.width, at[1] + image.height), outline=FRAME)
        for number, line in enumerate(lines):
            colour = MUTED if (index == 0 and number) or number == 2 else INK
            _write(brush, (x, top + SIDE + 6 + number * LINE), line, SIDE, colour=colour)


def _heat(look: Look) -> Array:
    """The image under the map, at a size at which the map stays smooth; in plain grey where there is none."""
    import numpy as np

    assert look.picture is not None
    picture, values = np.asarray(enlarge(look.picture)), look.attention.values
    if look.attention.state != "map":
        grey: Array = np.repeat(np.rint(_grey(picture))[..., None], 3, axis=2).astype(np.uint8)
        return grey
    return overlay(picture, _resize(values, picture.shape[0], picture.shape[1]))


def _grey(picture: Array) -> Array:
    """Brightness (H, W), float32, as television weighs the colours."""
    import numpy as np

    grey: Array = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return grey


def _resize(values: Array, height: int, width: int) -> Array:
    import numpy as np
    from PIL import Image

    resized = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
    found: Array = np.clip(np.asarray(resized), 0.0, 1.0)
    return found


def _draw_bar(canvas: Image, brush: ImageDraw, top: int) -> None:
    """What the colours mean."""
    import numpy as np
    from PIL import Image

    width, height = BAR
    values = np.repeat(np.linspace(0, 1, width, dtype=np.float32)[None], height, axis=0)
    _write(brush, (MARGIN, top), "0", 20)
    canvas.paste(Image.fromarray(overlay(np.full((height, width, 3), 128, np.uint8), values)), (MARGIN + 16, top + 4))
    _write(brush, (MARGIN + 16 + width + 8, top), "GradCAM++, share of each map's own largest value", canvas.width)


def _write(
    brush: ImageDraw, at: tuple[int, int], text: str, width: int, *, size: int = TEXT, colour: str = INK
) -> None:
    from vexport.bench.page.fonts import font, shorten

    said: Any = shorten(text.encode("latin-1", "replace").decode("latin-1"), width, size)
    brush.text(at, said, fill=colour, font=font(size))


def _class(name: str) -> str:
    return name if len(name) <= CLASS_LETTERS else name[: CLASS_LETTERS - 3] + "..."


def _file_name(shown: str) -> str:
    """The end of a path, which tells more than its beginning."""
    return shown if len(shown) <= 30 else "..." + shown[-27:]
