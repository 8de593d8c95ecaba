"""Layers, types and formats: of a network before the build, of an engine after it; and the gate on precision."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vexport.errors import PrecisionError

# Layers that do the arithmetic; the others move, shape or scale what these give.
COMPUTING = frozenset({"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "FULLY_CONNECTED", "EINSUM", "ATTENTION"})
# Layers that calculate with what those give, and cost time in FP32 or a conversion on either side.
ARITHMETIC = COMPUTING | {
    "ACTIVATION",
    "ELEMENTWISE",
    "LRN",
    "NORMALIZATION",
    "PARAMETRIC_RELU",
    "POOLING",
    "REDUCE",
    "RESIZE",
    "SCALE",
    "SOFTMAX",
    "UNARY",
}
_NAMES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8"}
_WANTED = {"fp32": {"fp32"}, "fp16": {"fp16"}, "bf16": {"bf16"}, "int8": {"int8", "fp16", "fp32", "bf16"}}
# What the formats of an engine's tensors are called in its own report.
_REPORTED = (
    ("bfloat16", "bf16"),
    ("fp16", "fp16"),
    ("half", "fp16"),
    ("bf16", "bf16"),
    ("int8", "int8"),
    ("fp32", "fp32"),
    ("float", "fp32"),
)


@dataclass(frozen=True)
class NetworkLayer:
    """One layer of a TensorRT network.

    Args:
        name: Of the ONNX node it came from.
        kind: TensorRT's type, `CONVOLUTION` and so on.
        precision: Type of its output: `fp32`, `fp16`, `bf16`, `int8`, or TensorRT's name for others.
        inputs: Types of its inputs, likewise.
        quantised: Whether it multiplies what comes from DequantizeLinear nodes on both sides: then it computes on INT8,
            whatever the type between them.
    """

    name: str
    kind: str
    precision: str
    inputs: tuple[str, ...] = ()
    quantised: bool = False

    @property
    def computes(self) -> str:
        """What it computes in: `int8`, or the type of its output."""
        return "int8" if self.quantised else self.precision

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "inputs": list(self.inputs)}


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a built engine.

    Args:
        name: As the engine reports it; fused layers name all their parts.
        kind: `CaskConvolution`, `gemm`, `Reformat` and so on.
        inputs, outputs: Types of its tensors, `fp16` and so on.
        formats: Their memory formats, in the engine's words.
        tactic: The kernel, where the engine tells.
        nodes: The ONNX nodes in it, where the name does not say.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    formats: tuple[str, ...]
    tactic: str = ""
    nodes: str = ""

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def network_layers(network: Any) -> tuple[NetworkLayer, ...]:
    """The layers of a parsed network, in order."""
    found = []
    dequantised: set[str] = set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = str(layer.type).rpartition(".")[2]
        inputs = [tensor for at in range(layer.num_inputs) if (tensor := layer.get_input(at)) is not None]
        if kind == "DEQUANTIZE":
            dequantised |= {str(layer.get_output(at).name) for at in range(layer.num_outputs)}
        factors = [str(tensor.name) for tensor in inputs[:2]]
        found.append(
            NetworkLayer(
                name=str(layer.name),
                kind=kind,
                precision=_name(layer.get_output(0)) if layer.num_outputs else "",
                inputs=tuple(_name(tensor) for tensor in inputs),
                quantised=kind in COMPUTING and len(factors) > 1 and set(factors) <= dequantised,
            )
        )
    return tuple(found)


def _name(tensor: Any) -> str:
    kind = str(tensor.dtype).rpartition(".")[2]
    return _NAMES.get(kind, kind.lower())


def floating(layers: Iterable[NetworkLayer]) -> list[NetworkLayer]:
    """The layers that hold the network's arithmetic: without constants and the integer arithmetic of shapes."""
    return [layer for layer in layers if layer.precision in _NAMES.values() and layer.kind != "CONSTANT"]


def count_precisions(layers: Iterable[NetworkLayer]) -> dict[str, dict[str, int]]:
    """How many layers of each computing kind have which precision."""
    found: dict[str, Counter[str]] = {}
    for layer in layers:
        if layer.kind in COMPUTING:
            found.setdefault(layer.kind.lower(), Counter())[layer.computes] += 1
    return {kind: dict(counts) for kind, counts in found.items()}


def require_precision(layers: Sequence[NetworkLayer], precision: str, kept_fp32: Mapping[str, str]) -> None:
    """Refuse a network in which a computing layer has not the precision asked for.

    In a strongly typed network these types are binding for the builder, so this holds for the engine too. What else
    is in FP32 is told by `other_fp32`: TensorRT's parser makes some operators of FP32 layers whatever the graph says.

    Args:
        layers: Of the network.
        precision: Asked for.
        kept_fp32: Nodes that stay in FP32 on purpose.

    Raises:
        PrecisionError: with the layers' names; or nothing computes in INT8 where that was asked.
    """
    computing = [layer for layer in layers if layer.kind in COMPUTING]
    wrong = [
        layer
        for layer in computing
        if layer.precision not in _WANTED[precision] and not (layer.precision == "fp32" and layer.name in kept_fp32)
    ]
    if wrong:
        raise PrecisionError(
            f"{len(wrong)} of {len(computing)} computing layers are not {precision}",
            details=[f"{layer.name} ({layer.kind.lower()}) is {layer.precision}" for layer in wrong[:8]],
            hint=f"give the FP32 graph and --{precision}, so that it is converted whole",
        )
    if precision == "int8" and not any(layer.kind == "QUANTIZE" for layer in layers):
        raise PrecisionError(
            "no layer computes in INT8: the graph has no Q/DQ nodes", hint="give a quantised graph, or build --fp16"
        )


def other_fp32(layers: Sequence[NetworkLayer], precision: str, kept_fp32: Mapping[str, str]) -> list[str]:
    """Layers of a 16-bit or INT8 network that calculate in FP32 without being convolutions or matrix products.

    Those of a kept node are left out: the parser numbers further layers that it makes of one node, as in `fc_3`.
    """
    if precision not in ("fp16", "bf16", "int8"):
        return []
    return [
        f"{layer.name} ({layer.kind.lower()})"
        for layer in layers
        if layer.kind in ARITHMETIC - COMPUTING
        and layer.precision == "fp32"
        and not {layer.name, re.sub(r"_\d+$", "", layer.name)} & kept_fp32.keys()
    ]


def parse_engine_layers(report: str) -> tuple[EngineLayer, ...]:
    """The layers in an engine's own report, as its inspector gives it in JSON with detailed verbosity.

    Engines built with lower verbosity give names only: then types and formats are empty.
    """
    layers = json.loads(report).get("Layers", [])
    return tuple(_engine_layer(entry) for entry in layers)


def _engine_layer(entry: Any) -> EngineLayer:
    if not isinstance(entry, dict):
        return EngineLayer(str(entry), "", (), (), ())
    inputs, outputs = (list(entry.get(side) or []) for side in ("Inputs", "Outputs"))
    formats = [str(tensor.get("Format/Datatype", tensor.get("Format", ""))) for tensor in inputs + outputs]
    kinds = [_reported(tensor) for tensor in inputs + outputs]
    return EngineLayer(
        name=str(entry.get("Name", "")),
        kind=str(entry.get("LayerType", "")),
        inputs=tuple(kinds[: len(inputs)]),
        outputs=tuple(kinds[len(inputs) :]),
        formats=tuple(dict.fromkeys(formats)),
        tactic=str(entry.get("TacticName", entry.get("TacticValue", ""))),
        nodes=" ".join(re.split(r"[\x1e\x1f]", str(entry.get("Metadata", "")))),
    )


def _reported(tensor: Mapping[str, Any]) -> str:
    return report_name(str(tensor.get("Datatype", tensor.get("Format/Datatype", ""))))


def report_name(said: str) -> str:
    """`fp16` and so on, of what an engine's report calls a type: `Half`, `Channel major FP16 format`."""
    text = said.lower()
    return next((name for sign, name in _REPORTED if sign in text), text)


def require_engine_precision(
    layers: Sequence[EngineLayer], nodes: Iterable[str], precision: str, kept_fp32: Mapping[str, str]
) -> int:
    """Refuse an engine in which a layer fell back to FP32.

    Args:
        layers: As the engine reports them.
        nodes: Names of the computing nodes of the graph.
        precision: `fp16`, `bf16` or `int8`.
        kept_fp32: Nodes that stay in FP32 on purpose.

    Returns:
        How many of the nodes were found in layers whose types are known; fused kernels may hide some.

    Raises:
        PrecisionError: with the layers' names.
    """
    seen, wrong = 0, []
    for node in nodes:
        if node in kept_fp32:
            continue
        holders = [layer for layer in layers if layer.outputs and not _moves(layer) and holds_node(layer, node)]
        if not holders:
            continue
        seen += 1
        # The first kernel may take FP32, the last may give it.
        if not any(kind == precision for layer in holders for kind in (*layer.inputs, *layer.outputs)):
            wrong.append(f"{node} ({holders[0].kind}) takes {', '.join(holders[0].inputs)}")
    if wrong:
        raise PrecisionError(
            f"{len(wrong)} layers of the engine fell back from {precision}",
            details=wrong[:8],
            hint="build it again with --opt-level 5, or with TensorRT 10 or later, where the graph's types are binding",
        )
    return seen


def _moves(layer: EngineLayer) -> bool:
    """Whether a layer only changes formats: those before a kernel that fell back touch the precision asked for."""
    return layer.kind in ("Reformat", "NoOp") or layer.name.startswith("Reformatting CopyNode")


def holds_node(layer: EngineLayer, node: str) -> bool:
    """Whether an ONNX node went into a layer of an engine, by its name or its metadata."""
    return _mentions(layer.name, node) or _mentions(layer.nodes, node)


def _mentions(text: str, node: str) -> bool:
    """Whether a fused layer's name has this node in it, as in `cls.0 + cls.2` or `[ONNX Layer: cls.0]`."""
    return re.search(rf"(?<![\w./]){re.escape(node)}(?![\w./])", text) is not None
