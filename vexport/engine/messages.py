"""What TensorRT says while it works, kept instead of printed."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

_NOISE = re.compile(r"^\[[EWF!]\]\s*|\x1b\[[0-9;]*m")
_EMPTY = "Invalid Engine. Please ensure the engine was built correctly"  # Polygraphy's, after TensorRT's own reason


class _Listener(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.extend(
            line
            for raw in record.getMessage().splitlines()
            if (line := _NOISE.sub("", raw).strip()) not in ("", _EMPTY)
        )


@contextmanager
def heard() -> Iterator[list[str]]:
    """The errors that TensorRT and Polygraphy report inside this block, line by line."""
    said: list[str] = []
    listener = _Listener(said)
    logger = logging.getLogger("Polygraphy")
    logger.addHandler(listener)
    try:
        yield said
    finally:
        logger.removeHandler(listener)


def first_lines(said: list[str], count: int = 4, width: int = 240) -> list[str]:
    """The first different lines, shortened."""
    return [line if len(line) <= width else line[: width - 3] + "..." for line in list(dict.fromkeys(said))[:count]]
