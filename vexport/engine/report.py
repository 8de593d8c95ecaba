"""What a builder says of the engine that it has just built: its layers, types and kernels, on any machine.

The engine's own inspector needs a GPU to open the plan on. The builder prints the same table at the end of its verbose
log. That is text for people and may change with TensorRT: what cannot be read is left out, not guessed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from vexport.engine.inspect import EngineLayer, report_name

_START = "Layers:"
_LAYER = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), ")
_SIDES = re.compile(
    r"Inputs: \[(?P<inputs>.*?)\], (?:Constants: \[.*?\], )?Outputs: \[(?P<outputs>.*?)\], TacticName: "
)
_TYPES = re.compile(r"Datatype: (\w+), Format: ([^}]*?) ?\}")
_TACTIC = re.compile(r"TacticName: ([^,]*), ")
_NODES = re.compile(r"Metadata: (.*?)(?:\n\s*\n|$)", re.DOTALL)
# The nodes of a layer are set apart by control characters, which some take for the end of a line.
_BETWEEN = re.compile(r"[\x1e\x1f\n]+\s*")
# Polygraphy's level for what TensorRT says verbosely.
_VERBOSE = "EXTRA_VERBOSE"


class _Listener(logging.Handler):
    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.NOTSET)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if _START in text and "LayerType: " in text:
            self._found.append(text)


@contextmanager
def heard_layers(*, wanted: bool = True) -> Iterator[list[str]]:
    """The tables of layers that builders write to their log inside this block.

    Args:
        wanted: Whether to listen at all: TensorRT says a thousand lines and more to get there.
    """
    from polygraphy.logger import G_LOGGER

    found: list[str] = []
    if not wanted:
        yield found
        return
    listener, logger = _Listener(found), logging.getLogger("Polygraphy")
    before = G_LOGGER.module_severity, logger.level
    logger.addHandler(listener)
    G_LOGGER.module_severity = getattr(G_LOGGER, _VERBOSE)
    logger.setLevel(logging.NOTSET + 1)
    try:
        yield found
    finally:
        logger.removeHandler(listener)
        G_LOGGER.module_severity, level = before
        logger.setLevel(level)


def parse_table(text: str) -> tuple[EngineLayer, ...]:
    """The layers in a builder's table; none where it has another form than TensorRT 10 and later give it."""
    found = []
    for line in re.split(r"\n\s*(?=Name: )", text):
        head, sides = _LAYER.search(line), _SIDES.search(line)
        if head is None or sides is None:
            continue
        inputs, outputs = _TYPES.findall(sides["inputs"]), _TYPES.findall(sides["outputs"])
        tactic, nodes = _TACTIC.search(line), _NODES.search(line)
        found.append(
            EngineLayer(
                name=head["name"],
                kind=head["kind"],
                inputs=tuple(report_name(kind) for kind, _ in inputs),
                outputs=tuple(report_name(kind) for kind, _ in outputs),
                formats=tuple(dict.fromkeys(layout for _, layout in (*inputs, *outputs))),
                tactic=tactic[1].strip() if tactic else "",
                nodes=_BETWEEN.sub(" ", nodes[1]).strip() if nodes else "",
            )
        )
    return tuple(found)
