"""The gate on INT8: the convolutions that the graph quantises compute on INT8, the others in 16 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vexport.engine.inspect import COMPUTING, EngineLayer, NetworkLayer, holds_node
from vexport.errors import PrecisionError

LISTED = 8
# What an engine calls the layers that multiply: `CaskConvolution`, `correlation`, `gemm`, `runtime_fusion`. Others that
# name a convolution's node scale, add its bias or quantise.
_MULTIPLYING = ("conv", "correlation", "gemm", "matmul", "fusion", "deconv")


@dataclass(frozen=True)
class Int8Plan:
    """What a quantised graph says its computing nodes compute in.

    Args:
        int8: Names of the nodes that take INT8 and have INT8 weights.
        others: Names of the other computing nodes.
        rest: What those compute in: `fp16` or `fp32`.
    """

    int8: tuple[str, ...]
    others: tuple[str, ...]
    rest: str


def require_int8_network(layers: Sequence[NetworkLayer], plan: Int8Plan, kept_fp32: Mapping[str, str]) -> None:
    """Refuse a network whose layers do not compute in what the graph says.

    Args:
        layers: Of the network.
        plan: What the graph says.
        kept_fp32: Nodes whose types stay FP32 on purpose; those among them that are quantised are INT8 all the same.

    Layers that the plan does not speak of are not looked at.

    Raises:
        PrecisionError: with the layers' names.
    """
    wrong = []
    computing = [layer for layer in layers if layer.kind in COMPUTING]
    for layer in computing:
        if layer.name not in (*plan.int8, *plan.others):
            continue
        wanted = {"int8"} if layer.name in plan.int8 else {plan.rest, "fp32" if layer.name in kept_fp32 else plan.rest}
        if layer.computes not in wanted:
            wrong.append(f"{layer.name} ({layer.kind.lower()}) is {layer.computes}, not {' or '.join(sorted(wanted))}")
    there = {layer.name for layer in computing}
    wrong += [f"{name} is not in the network" for name in plan.int8 if name not in there]
    if wrong:
        raise _refuse(f"{len(wrong)} of {len(computing)} computing layers are not in the graph's precision", wrong)


def require_int8_engine(layers: Sequence[EngineLayer], plan: Int8Plan, kept_fp32: Mapping[str, str]) -> int:
    """Refuse an engine that does not multiply in what the graph says.

    Args:
        layers: As the engine, or the builder, reports them.
        plan: What the graph says.
        kept_fp32: Nodes that stay in FP32 on purpose.

    Returns:
        How many of the nodes were found in layers that multiply and whose types are known; fused kernels may hide some.

    Raises:
        PrecisionError: with the layers' names.
    """
    seen, wrong = 0, []
    for node in (*plan.int8, *plan.others):
        wanted = "int8" if node in plan.int8 else plan.rest
        if wanted != "int8" and node in kept_fp32:
            continue
        multiplying = [layer for layer in layers if layer.inputs and _multiplies(layer) and holds_node(layer, node)]
        if not multiplying:
            continue
        seen += 1
        # A fused layer takes other tensors as well, the bias or a residual.
        if not any(wanted in layer.inputs for layer in multiplying):
            wrong.append(f"{node} ({multiplying[0].kind}) takes {', '.join(multiplying[0].inputs)}, not {wanted}")
    if wrong:
        raise _refuse(f"{len(wrong)} layers of the engine are not in the graph's precision", wrong)
    return seen


def _multiplies(layer: EngineLayer) -> bool:
    return any(part in layer.kind.lower() for part in _MULTIPLYING)


def _refuse(message: str, wrong: list[str]) -> PrecisionError:
    return PrecisionError(
        message,
        details=[*wrong[:LISTED], *([f"and {len(wrong) - LISTED} more"] if len(wrong) > LISTED else [])],
        hint="give the INT8 graph that `vexport quantize` wrote, or build with --fp16",
    )


def describe_read_back(layers: Sequence[EngineLayer], plan: Int8Plan, kept_fp32: Mapping[str, str]) -> dict[str, Any]:
    """What a report showed, for a manifest.

    Raises:
        PrecisionError: see `require_int8_engine`.
    """
    seen = require_int8_engine(layers, plan, kept_fp32)
    return {
        "result": "read back" if seen else "not readable",
        "nodes_seen": seen,
        "nodes": len(plan.int8) + len(plan.others),
        "layers": [layer.to_json() for layer in layers],
    }
