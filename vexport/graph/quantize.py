"""FP32 graph to INT8: explicit Q/DQ nodes around every convolution, by ONNX Runtime's quantiser.

What a convolution takes goes through QuantizeLinear and DequantizeLinear, with one symmetric scale per tensor; its
weight is stored in INT8, with one symmetric scale per output channel, behind a DequantizeLinear. The bias stays FP32,
and so do what a convolution gives, and input and output of the graph. TensorRT, TensorRT for RTX and ONNX Runtime read
this. TensorRT fuses a convolution with the nodes around it where nothing quantises its output before the Relu.

Weights could stay FP32 with a QuantizeLinear too: TensorRT for RTX 1.7 builds the same layers from both, and the file
is four times as large.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx import TensorProto, numpy_helper
from onnx_ir.passes.common import TopologicalSortPass

from vexport.errors import ExportError, InputError
from vexport.graph.inspect import read_graph
from vexport.graph.opset import DEFAULT_OPSET, LEAST_OPSET, ONNX_DOMAINS, set_opset
from vexport.graph.precision import lift_constants

LEVELS = 127  # symmetric: from -127 to 127
Q, DQ = "QuantizeLinear", "DequantizeLinear"
INTEGER_CONVS = ("QLinearConv", "ConvInteger")  # quantised without Q/DQ
LISTED = 12
# How ONNX Runtime marks a graph whose shapes are inferred; it would write others to disk and read them again.
_INFERRED = ("onnx.infer", "onnxruntime.quant")
# How onnx and ONNX Runtime's quantiser say that they cannot do it.
_REFUSALS = (
    onnx.shape_inference.InferenceError,
    ValueError,
    AssertionError,
    KeyError,
    TypeError,
    RuntimeError,
)


@dataclass(frozen=True)
class ConvEdges:
    """What is quantised at one convolution.

    Args:
        node: Its name.
        input: The tensor that it takes, before it is quantised.
        input_scale: Of that tensor; None where it is taken in FP32.
        weight: The INT8 or FP32 tensor that holds its weight.
        weight_scales: Least and largest of its channels' scales; None where the weight is FP32.
        channels: How many scales the weight has; 0 where it is FP32.
    """

    node: str
    input: str
    input_scale: float | None
    weight: str
    weight_scales: tuple[float, float] | None
    channels: int

    @property
    def quantised(self) -> bool:
        """Whether it computes on INT8."""
        return self.input_scale is not None and self.weight_scales is not None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "weight_scales": list(self.weight_scales) if self.weight_scales else None,
            "quantised": self.quantised,
        }


def conv_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions whose weight is a constant, in the graph's order: what can be quantised."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type == "Conv" and node.input[1] in weights]


def require_convs(model: onnx.ModelProto, keep: Collection[str]) -> list[str]:
    """The convolutions that are left to be quantised.

    Args:
        model: Weights are initializers (`lift_constants` sees to that).
        keep: Convolutions that stay in FP32.

    Raises:
        InputError: `keep` names something else, or there is none left.
    """
    there = conv_nodes(model)
    if not there:
        raise _without_convs(model)
    unknown = [name for name in keep if name not in there]
    if unknown:
        more = f" ... ({len(there)} in all)" if len(there) > LISTED else ""
        raise InputError(
            f"the graph has no convolution {', '.join(unknown)}",
            details=[f"it has: {', '.join(there[:LISTED])}{more}"],
            hint="name layers as the graph does; `vexport inspect` lists them",
        )
    left = [name for name in there if name not in set(keep)]
    if not left:
        raise InputError("there is no convolution left to quantise", hint="keep fewer layers in FP32")
    return left


def _without_convs(model: onnx.ModelProto) -> InputError:
    integer = [node for node in model.graph.node if node.op_type in INTEGER_CONVS]
    if integer:
        kinds = ", ".join(sorted({node.op_type for node in integer}))
        return InputError(
            "the graph is quantised already",
            details=[f"its {len(integer)} convolution(s) are integer operators: {kinds}"],
            hint="give the FP32 graph that it was made from",
        )
    computed = sum(node.op_type == "Conv" for node in model.graph.node)
    return InputError(
        "there is no convolution with constant weights in the graph: nothing to quantise",
        details=[f"{computed} convolution(s) take weights that are computed"] if computed else (),
        hint="fold constants first, as `vexport onnx` does" if computed else "build it with --fp16",
    )


def conv_inputs(model: onnx.ModelProto, convs: Collection[str]) -> list[str]:
    """The tensors that these convolutions take, each once, in the graph's order: those that need a range."""
    return list(dict.fromkeys(node.input[0] for node in model.graph.node if node.name in set(convs)))


def quantize(
    model: onnx.ModelProto | Path,
    ranges: Mapping[str, float],
    *,
    keep: Collection[str] = (),
    per_channel: bool = True,
) -> onnx.ModelProto:
    """Give the convolutions of a graph INT8 inputs and weights.

    Args:
        model: An FP32 graph with named nodes and weights as initializers; not changed. Or its file.
        ranges: Largest magnitude that INT8 shall hold, of each tensor that a convolution takes.
        keep: Names of convolutions that stay in FP32, and take FP32.
        per_channel: One scale per output channel of a weight; else one per weight.

    Raises:
        InputError: `keep` is not in the graph, a range is missing or no number, or the graph is quantised already.
        ExportError: ONNX Runtime cannot quantise the graph, or left a convolution in FP32 that it was to quantise.
    """
    model = read_graph(model) if isinstance(model, Path) else model
    if any(node.op_type in (Q, DQ) for node in model.graph.node):
        raise InputError("the graph is quantised already", hint="give the FP32 graph that it was made from")
    convs = require_convs(model, keep)
    wanted = conv_inputs(model, convs)
    wrong = [name for name in wanted if not (name in ranges and 0 <= ranges[name] < np.inf)]
    if wrong:
        raise InputError(
            f"{len(wrong)} tensor(s) have no range",
            details=[f"{name}: {ranges.get(name, 'missing')}" for name in wrong[:LISTED]],
            hint="measure them all on calibration images",
        )
    source = onnx.ModelProto()
    source.CopyFrom(model)
    _give_copies(source, set(convs))
    result = _run_quantizer(source, {name: ranges[name] for name in wanted}, convs, per_channel)
    _free_others(result, set(convs))
    del result.graph.value_info[:]
    ordered = onnx_ir.from_proto(result)
    TopologicalSortPass()(ordered)
    sorted_model = onnx_ir.to_proto(ordered)
    del sorted_model.metadata_props[:]
    onnx.helper.set_model_props(sorted_model, {entry.key: entry.value for entry in model.metadata_props})
    _require_quantised(sorted_model, convs)
    return sorted_model


def _require_quantised(model: onnx.ModelProto, convs: Sequence[str]) -> None:
    """Raises: ExportError: one of these convolutions computes in FP32. ONNX Runtime skips what it cannot do."""
    done = {edges.node for edges in conv_edges(model) if edges.quantised}
    left = [name for name in convs if name not in done]
    if left:
        raise ExportError(
            f"ONNX Runtime left {len(left)} convolution(s) in FP32 that were to be INT8",
            details=[*left[:LISTED], *([f"and {len(left) - LISTED} more"] if len(left) > LISTED else [])],
            hint="keep them in FP32 (--keep NODE), or build the graph with --fp16",
        )


def _run_quantizer(
    source: onnx.ModelProto, ranges: Mapping[str, float], convs: list[str], per_channel: bool
) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    opset = next(entry.version for entry in source.opset_import if entry.domain in ONNX_DOMAINS)
    if opset < LEAST_OPSET:
        source = set_opset(source, DEFAULT_OPSET)
    pairs = {name: (np.float32(-top), np.float32(top)) for name, top in ranges.items()}
    try:
        source = onnx.shape_inference.infer_shapes(source)
        _give_types(source, set(convs))
        onnx.helper.set_model_props(source, dict([_INFERRED]))
        quantizer = QDQQuantizer(
            source,
            per_channel=per_channel,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, pairs),
            nodes_to_quantize=list(convs),
            nodes_to_exclude=[],
            op_types_to_quantize=["Conv"],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "DedicatedQDQPair": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": ["Conv"],
            },
        )
        result: onnx.ModelProto = quantizer.quantize_model()
    except _REFUSALS as error:
        raise ExportError(
            "ONNX Runtime cannot quantise the graph",
            details=[str(error).splitlines()[0] if str(error) else type(error).__name__],
            hint="build it with --fp16, and report it with the graph",
        ) from error
    return result


def _give_types(model: onnx.ModelProto, convs: set[str]) -> None:
    """Say of what type convolutions take their input where onnx does not know it, in place.

    Behind an operator that onnx has no definition of, a contributed or custom one, it knows no types, and ONNX Runtime
    leaves a tensor of unknown type as it is. A convolution's input is of the type of its weight.
    """
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    infos = {value.name: value for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        if node.name not in convs:
            continue
        name, kind = node.input[0], weights[node.input[1]]
        if name not in infos:
            infos[name] = model.graph.value_info.add()
            infos[name].name = name
        tensor = infos[name].type.tensor_type
        if not tensor.elem_type:
            tensor.elem_type = kind


def _give_copies(model: onnx.ModelProto, convs: set[str]) -> None:
    """Weights that a convolution shares with others: a copy of its own, in place.

    ONNX Runtime would give all of them the INT8 weight, also those that stay in FP32.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    for node in model.graph.node:
        if node.name in convs and readers[node.input[1]] > 1:
            copied = model.graph.initializer.add()
            copied.CopyFrom(weights[node.input[1]])
            copied.name = f"{node.name}.own_weight"
            node.input[1] = copied.name


def _free_others(model: onnx.ModelProto, convs: set[str]) -> None:
    """Let every node that is not quantised take what it took before, in place.

    ONNX Runtime lets all readers of a tensor take it dequantised, also a layer that is kept in FP32.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in (Q, DQ) or node.name in convs:
            continue
        for index, name in enumerate(node.input):
            dequantize = producers.get(name)
            quantize_node = producers.get(dequantize.input[0]) if dequantize and dequantize.op_type == DQ else None
            if quantize_node is not None and quantize_node.op_type == Q:
                node.input[index] = quantize_node.input[0]


def conv_edges(model: onnx.ModelProto) -> list[ConvEdges]:
    """Where a graph is quantised: each convolution with its scales, read from the graph itself.

    Args:
        model: A graph, with its weights, by vexport or another tool; not changed.

    Raises:
        InputError: a QuantizeLinear and its DequantizeLinear have different scales, a scale is computed, or a tensor
            that a convolution takes has several.
    """
    if any(node.op_type == "Constant" for node in model.graph.node):
        model = lift_constants(model)  # there, too, other tools keep scales
    producers = {name: node for node in model.graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        tensor, scale = _activation(node.input[0], producers, tensors)
        weight, scales = _weight(node.input[1], producers, tensors)
        found.append(
            ConvEdges(
                node=node.name,
                input=tensor,
                input_scale=scale,
                weight=weight,
                weight_scales=(float(scales.min()), float(scales.max())) if scales.size else None,
                channels=int(scales.size),
            )
        )
    return found


def _activation(
    name: str, producers: Mapping[str, onnx.NodeProto], tensors: Mapping[str, TensorProto]
) -> tuple[str, float | None]:
    """The tensor before Q/DQ, and its scale."""
    dequantize = producers.get(name)
    if dequantize is None or dequantize.op_type != DQ:
        return name, None
    quantize_node = producers.get(dequantize.input[0])
    if quantize_node is None or quantize_node.op_type != Q:
        return name, None
    scales = []
    for part in (quantize_node, dequantize):
        found = _scales(part, tensors)
        if found.size != 1:
            raise InputError(
                f"{part.name} has {found.size} scales for the tensor {quantize_node.input[0]}",
                hint="quantise what convolutions take with one scale per tensor",
            )
        scales.append(float(found[0]))
    if scales[0] != scales[1]:
        raise InputError(
            f"{quantize_node.name} has the scale {scales[0]:g}, {dequantize.name} {scales[1]:g}",
            hint="quantise the FP32 graph again",
        )
    return quantize_node.input[0], scales[0]


def _weight(
    name: str, producers: Mapping[str, onnx.NodeProto], tensors: Mapping[str, TensorProto]
) -> tuple[str, np.ndarray[Any, Any]]:
    """The tensor that holds a weight, and its scales."""
    dequantize = producers.get(name)
    if dequantize is None or dequantize.op_type != DQ:
        return name, np.zeros(0)
    stored = dequantize.input[0]
    quantize_node = producers.get(stored)
    if quantize_node is not None and quantize_node.op_type == Q:
        stored = quantize_node.input[0]  # as other tools write it: FP32, quantised when it is loaded
    return stored, _scales(dequantize, tensors)


def _scales(node: onnx.NodeProto, tensors: Mapping[str, TensorProto]) -> np.ndarray[Any, Any]:
    """The scales of a QuantizeLinear or DequantizeLinear, (channels,)."""
    tensor = tensors.get(node.input[1])
    if tensor is None:
        raise InputError(
            f"the scale of {node.name} is not a constant", hint="fold the graph's constants, or quantise it statically"
        )
    return numpy_helper.to_array(tensor).reshape(-1)
