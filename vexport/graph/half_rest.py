"""INT8 graph to one whose rest computes in FP16: what is not an INT8 convolution, and the types between them.

A strongly typed network computes in the types that the graph names, so a Q/DQ graph whose tensors are FP32 has FP32 in
all its other layers. Here they become FP16; input and output stay FP32. QuantizeLinear and DequantizeLinear get FP16
scales, with nothing between a DequantizeLinear and its convolution: so NVIDIA's own quantiser writes them. FP32 Q/DQ
between casts would keep the scales to the bit, and TensorRT for RTX 1.7 builds the same INT8 kernels from that, but
TensorRT's rules of fusion name no casts. FP32 scales with FP16 tensors, which opset 23 allows, ONNX Runtime 1.31 does
not load.

A scale moves to the nearest FP16 number, by at most 0.05 %: the INT8 values stay as they are, so a weight moves by as
much, which is what FP16 does to every weight. A scale below FP16's normal numbers would lose more, or vanish: that
convolution keeps FP32 around it, and computes on INT8 all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from vexport.errors import InputError
from vexport.graph.opset import set_opset
from vexport.graph.precision import WeightRange, convert_precision, largest, overflowing_nodes, weight_ranges
from vexport.graph.quantize import DQ, Q, conv_edges

HALF_OPSET = 19  # the first that has Q/DQ nodes of FP16
NORMAL = float(ml_dtypes.finfo(np.float16).tiny)  # type: ignore[no-untyped-call]


def int8_convs(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions that take INT8 and have INT8 weights, in the graph's order."""
    return [edges.node for edges in conv_edges(model) if edges.quantised]


def depthwise_convs(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions with one filter per channel, in the graph's order."""
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    stored = {edges.node: shapes.get(edges.weight, []) for edges in conv_edges(model)}
    found = []
    for node in model.graph.node:
        group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        # One input channel per filter, so as many groups as channels.
        if node.op_type == "Conv" and group > 1 and stored[node.name][1:2] == [1]:
            found.append(node.name)
    return found


def take_out(model: onnx.ModelProto, convs: Collection[str]) -> onnx.ModelProto:
    """Let some convolutions of a quantised graph compute in floating point again.

    They take what was quantised for them as it was before, and the FP32 weight that their INT8 weight stands for.

    Args:
        model: A Q/DQ graph with named nodes; not changed.
        convs: Names of quantised convolutions.

    Raises:
        InputError: one of them is not there, or not quantised.
    """
    unknown = sorted(set(convs) - set(int8_convs(model)))
    if unknown:
        raise InputError(
            f"the graph has no quantised convolution {', '.join(unknown)}",
            hint="name layers as the graph does; `vexport inspect` lists them",
        )
    result = onnx.ModelProto()
    result.CopyFrom(model)
    producers = {name: node for node in result.graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    for node in result.graph.node:
        if node.name not in convs:
            continue
        node.input[0] = producers[producers[node.input[0]].input[0]].input[0]
        dequantize = producers[node.input[1]]
        weight = result.graph.initializer.add()
        weight.CopyFrom(
            numpy_helper.from_array(_dequantized(dequantize, producers, tensors), f"{node.name}.int8_weight")
        )
        node.input[1] = weight.name
    return _pruned(result)


def _dequantized(
    node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], tensors: Mapping[str, TensorProto]
) -> np.ndarray:
    """FP32 (O, I, K, K): what a DequantizeLinear gives of a constant."""
    quantize = producers.get(node.input[0])
    scale = numpy_helper.to_array(tensors[node.input[1]]).astype(np.float32)
    scale = scale.reshape(-1, 1, 1, 1) if scale.ndim else scale
    stored = numpy_helper.to_array(tensors[node.input[0]]) if quantize is None else _quantized(quantize, tensors)
    return np.asarray(stored.astype(np.float32) * scale)


def _quantized(node: onnx.NodeProto, tensors: Mapping[str, TensorProto]) -> np.ndarray:
    """INT8 (O, I, K, K): what a QuantizeLinear gives of a constant."""
    values = numpy_helper.to_array(tensors[node.input[0]]).astype(np.float32)
    scale = numpy_helper.to_array(tensors[node.input[1]]).astype(np.float32)
    scale = scale.reshape(-1, 1, 1, 1) if scale.ndim else scale
    return np.asarray(np.clip(np.rint(values / scale), -128, 127).astype(np.int8))


def _pruned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without Q/DQ nodes and constants that nothing reads, in place."""
    outputs = {value.name for value in model.graph.output}
    while True:
        used = {name for node in model.graph.node for name in node.input} | outputs
        left = [node for node in model.graph.node if node.op_type not in (Q, DQ) or node.output[0] in used]
        if len(left) == len(model.graph.node):
            break
        del model.graph.node[:]
        model.graph.node.extend(left)
    constants = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    return model


def round_scales(model: onnx.ModelProto) -> onnx.ModelProto:
    """A Q/DQ graph in FP32 whose scales are FP16 numbers, where FP16 has them; weights are stored in INT8.

    It computes in FP32 and is what `make_rest_half` gives the types to.

    Args:
        model: A Q/DQ graph in FP32 with weights as initializers; not changed.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _store_weights(result)
    scales = {node.input[1] for node in result.graph.node if node.op_type in (Q, DQ)}
    for tensor in result.graph.initializer:
        if tensor.name in scales and _fits(tensor):
            values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return set_opset(result, HALF_OPSET) if _opset(result) < HALF_OPSET else result


def _store_weights(model: onnx.ModelProto) -> None:
    """Weights that are quantised when the graph is loaded: stored in INT8, in place, so that no FP16 comes between."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == Q and node.input[0] in tensors:
            stored = model.graph.initializer.add()
            stored.CopyFrom(numpy_helper.from_array(_quantized(node, tensors), f"{node.input[0]}.int8"))
            for reader in model.graph.node:
                for index, name in enumerate(reader.input):
                    if name == node.output[0]:
                        reader.input[index] = stored.name
    _pruned(model)


def _fits(tensor: TensorProto) -> bool:
    """Whether FP16 has all these scales as normal numbers."""
    values = numpy_helper.to_array(tensor)
    return bool((values >= NORMAL).all() and (values <= largest("fp16")).all())


def _opset(model: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def kept_nodes(model: onnx.ModelProto, max_abs: Mapping[str, float], limit: float) -> dict[str, str]:
    """Nodes that FP16 cannot hold: an activation or weight beyond `limit`, or a scale below FP16's normal numbers.

    A convolution and the DequantizeLinear nodes before it go together: a cast between them would keep TensorRT from
    fusing them.

    Args:
        model: By `round_scales`.
        max_abs: Largest magnitude of each tensor, measured.
        limit: Of the magnitude.

    Returns:
        The reason by node name.
    """
    kept = overflowing_nodes(model, dict(max_abs), limit)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in (Q, DQ) and not _fits(tensors[node.input[1]]):
            least = float(numpy_helper.to_array(tensors[node.input[1]]).min())
            kept.setdefault(node.name, f"its scale of {least:.2g} is no normal FP16 number")
    dequantizers = {node.output[0]: node for node in model.graph.node if node.op_type == DQ}
    for node in model.graph.node:
        before = [dequantizers[name] for name in node.input if name in dequantizers]
        reason = next((kept[one.name] for one in (node, *before) if one.name in kept), None)
        for one in (node, *before) if before and reason else ():
            kept.setdefault(one.name, reason or "")
    return kept


def make_rest_half(model: onnx.ModelProto, *, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Give FP16 to everything that is not INT8, but for input, output and some nodes.

    Args:
        model: By `round_scales`, with named nodes; not changed.
        keep: Names of nodes that stay in FP32, see `kept_nodes`.

    Raises:
        ExportError: ONNX Runtime cannot convert the graph.
    """
    inputs = {value.name for value in model.graph.input}
    # Images are quantised from the FP32 that they come in.
    first = [node.name for node in model.graph.node if node.op_type == Q and node.input[0] in inputs]
    return convert_precision(model, "fp16", keep=[*keep, *first])


def rest_weights(model: onnx.ModelProto) -> list[WeightRange]:
    """What 16 bits do to the FP32 constants of a Q/DQ graph; its scales are not among them.

    Args:
        model: By `round_scales`.
    """
    scales = {node.input[1] for node in model.graph.node if node.op_type in (Q, DQ)}
    return [row for row in weight_ranges(model, "fp16") if row.tensor not in scales]
