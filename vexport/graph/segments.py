"""A quantised graph and the same graph in other types, compared piece by piece on the same INT8 values.

End to end they cannot agree closely: where a value lies near the border between two INT8 steps, the least rounding
moves it by a whole step, and the layers after that see other inputs. So each piece, from the DequantizeLinear nodes
that it reads to the next QuantizeLinear, is given the INT8 values of the first graph; what is left is its own rounding.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from vexport.graph.quantize import DQ, Q

_PREFIX = "other/"


def compare_pieces(reference: onnx.ModelProto, other: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """One graph that runs both and measures how far they are apart at each QuantizeLinear and at the end.

    Args:
        reference: A Q/DQ graph in FP32 with named nodes.
        other: The same in other types, with FP32 arithmetic (`emulate_half`); its Q/DQ nodes have the same names.

    Returns:
        The graph, and the tensors of `reference` that are compared. The graph gives two scalars for each, in that
        order: the largest magnitude of the difference, and of the tensor.
    """
    source = reference.graph.input[0].name
    nodes, tensors = list(reference.graph.node), list(reference.graph.initializer)
    producers = {name: node for node in reference.graph.node for name in node.output}
    constants = {tensor.name for tensor in reference.graph.initializer}
    pairs = {
        node.name: producers[node.input[0]]
        for node in reference.graph.node
        if node.op_type == DQ and node.input[0] not in constants
    }
    named = {node.name: node for node in reference.graph.node}
    # The second graph reads the first one's INT8 values, dequantised.
    given = {source: source}
    given |= {node.output[0]: named[node.name].output[0] for node in other.graph.node if node.name in pairs}
    ends = [(reference.graph.output[0].name, other.graph.output[0].name)]
    for node in other.graph.node:
        if node.op_type == Q:
            if node.input[0] != source and named[node.name].input[0] != source:
                ends.append((named[node.name].input[0], node.input[0]))
        elif node.name not in pairs:
            nodes.append(_renamed(node, given))
    for tensor in other.graph.initializer:
        copied = TensorProto()
        copied.CopyFrom(tensor)
        copied.name = _PREFIX + tensor.name
        tensors.append(copied)
    outputs = []
    for index, (expected, found) in enumerate(ends):
        for what, (x, y) in {"error": (expected, given.get(found, _PREFIX + found)), "size": (expected, "")}.items():
            name = f"{what}/{index}"
            if y:
                nodes.append(helper.make_node("Sub", [x, y], [f"{name}/difference"]))
                x = f"{name}/difference"
            nodes.append(helper.make_node("Abs", [x], [f"{name}/magnitude"]))
            nodes.append(helper.make_node("ReduceMax", [f"{name}/magnitude"], [name], keepdims=0))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    graph = helper.make_graph(nodes, "pieces", list(reference.graph.input), outputs, tensors)
    made = helper.make_model(graph, opset_imports=list(reference.opset_import), ir_version=reference.ir_version)
    return made, [expected for expected, _ in ends]


def _renamed(node: onnx.NodeProto, given: Mapping[str, str]) -> onnx.NodeProto:
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    copied.name = _PREFIX + node.name
    for index, name in enumerate(node.input):
        copied.input[index] = given.get(name, _PREFIX + name) if name else name
    for index, name in enumerate(node.output):
        copied.output[index] = _PREFIX + name
    return copied
