"""What an INT8 cell really computes in INT8, as its runner reads back from the graph that its backend made.

A graph says what may be computed in INT8. ONNX Runtime leaves a convolution in FP32 where a Relu stands before the next
QuantizeLinear, and no backend here quantises matrix products: such a cell is an INT8 graph, and FP32 arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vexport.errors import VexportError
from vexport.graph.fused import GraphCost, count_fused
from vexport.graph.inspect import read_graph
from vexport.pipeline.bench_matrix import Cell

_OF_GRAPH = re.compile(r"(quantised in the graph|INT8): \d+ of \d+ convolutions")
_IN_INT8 = ("int8", "i8", "u8")  # as runners call it


def int8_layers(cell: Cell, facts: Mapping[str, Any]) -> frozenset[str] | None:
    """Names of the layers that were computed in INT8; None of other cells, and where the runner does not tell.

    Args:
        cell: As measured.
        facts: What its runner says of itself.
    """
    if cell.precision != "int8":
        return None
    told = (facts.get("runner") or {}).get("int8_layers")
    return None if told is None else frozenset(told)


def as_computed(cost: GraphCost, in_int8: frozenset[str] | None) -> GraphCost:
    """A cost whose layers multiply in what they were computed in: those that are not named, in FP32.

    Args:
        cost: Of the graph.
        in_int8: From `int8_layers`; None leaves the cost as the graph has it.
    """
    if in_int8 is None:
        return cost
    named = {cost.labels.get(name, name) for name in in_int8}
    layers = (
        replace(layer, precision="fp32") if layer.precision == "int8" and layer.macs and layer.name not in named
        else layer
        for layer in cost.layers
    )  # fmt: skip
    return replace(cost, layers=tuple(layers))


def int8_share(cell: Cell, facts: Mapping[str, Any]) -> float | None:
    """The share of a cell's multiply-accumulates that were computed in INT8.

    Args:
        cell: As measured.
        facts: What its runner says of itself.

    Returns:
        0 to 1; None where `int8_layers` is None, or the graph is not there any more.
    """
    names = int8_layers(cell, facts)
    made = cell.made
    path = None if made is None else made.graph or made.path
    if names is None or path is None or path.suffix.lower() != ".onnx":
        return None
    try:
        cost = as_computed(_cost(path, cell.batch, cell.input_size[1:]), names)
    except VexportError:
        return None
    return sum(layer.macs for layer in cost.layers if layer.precision == "int8") / cost.macs if cost.macs else None


@lru_cache(maxsize=64)
def _cost(path: Path, batch: int, size: tuple[int, int]) -> GraphCost:
    return count_fused(read_graph(path, with_weights=False), batch=batch, size=size)


def int8_note(cell: Cell, facts: Mapping[str, Any]) -> str | None:
    """The same for a reader: convolutions in INT8, and their share of the arithmetic."""
    if int8_layers(cell, facts) is None:
        return None
    counted = facts["runner"].get("convolutions") or {}
    done, total = sum(counted.get(kind, 0) for kind in _IN_INT8), sum(counted.values())
    said = f"computed in INT8: {done} of {total} convolutions"
    share = int8_share(cell, facts)
    if share is None:
        return said
    if share == 1:
        return f"{said}, all multiply-accumulates"
    part = f"{share:.0%}" if share == 0 or share >= 0.01 else "less than 1%"
    part = "more than 99%" if part == "100%" else part
    return f"{said}, {part} of the multiply-accumulates; the rest in floating point"


def is_graph_note(note: str) -> bool:
    """Whether a note says what the graph offers, which what was computed replaces."""
    return _OF_GRAPH.match(note) is not None
