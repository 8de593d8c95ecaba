"""What TensorRT says while it works, kept instead of printed."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from vexport.errors import EngineError

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


def explain_failure(said: list[str], *, refittable: bool) -> EngineError:
    """What to do about a build that failed, from what TensorRT said."""
    text = " ".join(said)
    hint = "try --opt-level 3 and the default options, and report it with the graph"
    if "OutOfMemory" in text or "out of memory" in text.lower():
        hint = "give more with --memory-mb, or free memory on the GPU"
    elif refittable:
        hint = "refittable and stripped engines are compiled at build time: build them on a machine with a GPU"
    elif "driver" in text.lower() or "cudaError" in text:
        hint = "building for the GPU at hand needs one with its driver; from any machine: --target a100"
    return EngineError("TensorRT cannot build the engine", details=first_lines(said), hint=hint)
