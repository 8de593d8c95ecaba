"""The font of the PNGs, which also tells how wide a text will be."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

_MEASURED = 40.0  # large, since widths at small sizes are rounded
_SAFE = 1.08  # the reader's font is not known


@lru_cache(maxsize=32)
def font(size: float) -> FreeTypeFont:
    """Pillow's own font, which is the same on every machine."""
    from PIL import ImageFont

    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont), "Pillow's wheels have FreeType"
    return found


@lru_cache(maxsize=4096)
def text_width(text: str, size: float = 13.0) -> float:
    """Width of a line of text in pixels, a little on the safe side."""
    return _SAFE * float(font(_MEASURED).getlength(text)) * size / _MEASURED


def shorten(text: str, width: float, size: float = 13.0) -> str:
    """As much of a text as fits, with three dots where it was cut."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "...", size) > width:
        text = text[:-1]
    return text + "..."
