"""Neighbouring convolutions between which a scale per channel can be moved without changing the function.

A scale moves from one convolution to the next where everything between the two passes it on, channel by channel:
f(x / s) = f(x) / s. Relu, LeakyRelu and max-pools do so for s > 0 (they are positively homogeneous), average pools
for any s (they are linear). Zero padding passes it too, since 0 / s = 0. A Clip or Relu6 does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto

POSITIVE = frozenset({"Relu", "LeakyRelu", "MaxPool", "GlobalMaxPool"})
LINEAR = frozenset({"AveragePool", "GlobalAveragePool", "Identity"})


@dataclass(frozen=True)
class Pair:
    """Two convolutions between which every channel can be rescaled exactly.

    Args:
        key: The tensor that the first gives; it names the pair.
        first: The first convolution's name.
        second: The second one's.
        first_weight: (O, I, ...) of the first; row c and the bias are divided by s_c.
        first_bias: "" where it has none.
        second_weight: Of the second. Depthwise (O, 1, ...): kernel c is multiplied by s_c; else (O, I, ...): column c.
        tensors: Those that are divided by s, from what the first gives to what the second takes.
        channels: How many scales there are.
        depthwise: Whether the second is depthwise.
        signed: Whether a scale may be negative: nothing but linear operators lies between.
    """

    key: str
    first: str
    second: str
    first_weight: str
    first_bias: str
    second_weight: str
    tensors: tuple[str, ...]
    channels: int
    depthwise: bool
    signed: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"tensors": list(self.tensors)}


@dataclass(frozen=True)
class Survey:
    """What a graph offers.

    Args:
        pairs: In the graph's order.
        refused: Why a convolution has no partner behind it, by the tensor that it gives.
    """

    pairs: tuple[Pair, ...]
    refused: Mapping[str, str]


def find_pairs(model: onnx.ModelProto) -> list[Pair]:
    """The pairs of a graph, in its order; see `survey_pairs` for the convolutions that have no partner."""
    return list(survey_pairs(model).pairs)


def survey_pairs(model: onnx.ModelProto) -> Survey:
    """Find the pairs, and say of every other convolution why it has no partner behind it.

    Weights are looked for among the initializers; `lift_constants` brings those of Constant nodes there.

    Args:
        model: With or without its weights' data; not changed.
    """
    graph = _Graph(model.graph)
    pairs, refused = [], {}
    for node in model.graph.node:
        if not _is(node, "Conv"):
            continue
        try:
            pairs.append(_pair(graph, node))
        except _NoPairError as reason:
            refused[node.output[0]] = str(reason)
    return Survey(tuple(pairs), refused)


class _NoPairError(Exception):
    """Why there is none."""


class _Graph:
    """Who reads what, and which tensors are seen from outside."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {value.name for value in graph.input}
        self.outputs = {value.name for value in graph.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in _names_read(node):
                self.readers.setdefault(name, []).append(node)

    def shape(self, conv: onnx.NodeProto) -> tuple[int, ...]:
        """The weight's shape.

        Raises:
            _NoPairError: weight or bias may not be changed.
        """
        for name in filter(None, conv.input[1:]):
            if name not in self.weights:
                raise _NoPairError(f"{name} of {_name(conv)} is no initializer")
            if self.weights[name].data_type != TensorProto.FLOAT:
                raise _NoPairError(f"{name} of {_name(conv)} is not FP32")
            if name in self.inputs or name in self.outputs:
                raise _NoPairError(f"{name} of {_name(conv)} is an input or output of the graph")
            if len(self.readers[name]) > 1:
                raise _NoPairError(f"{name} of {_name(conv)} is shared: {_listed(self.readers[name])}")
        return tuple(self.weights[conv.input[1]].dims)


def _pair(graph: _Graph, first: onnx.NodeProto) -> Pair:
    tensors, second, signed = _follow(graph, first)
    shape, shape_2 = graph.shape(first), graph.shape(second)
    for conv, dims in ((first, shape), (second, shape_2)):
        if _groups(conv) != 1 and not _is_depthwise(conv, dims):
            raise _NoPairError(f"{_name(conv)} has {_groups(conv)} groups without being depthwise")
    depthwise = _is_depthwise(second, shape_2)
    assert shape[0] == shape_2[0 if depthwise else 1], f"{_name(first)} and {_name(second)} do not fit"
    return Pair(
        key=first.output[0],
        first=_name(first),
        second=_name(second),
        first_weight=first.input[1],
        first_bias=first.input[2] if len(first.input) > 2 else "",
        second_weight=second.input[1],
        tensors=tensors,
        channels=shape[0],
        depthwise=depthwise,
        signed=signed,
    )


def _follow(graph: _Graph, first: onnx.NodeProto) -> tuple[tuple[str, ...], onnx.NodeProto, bool]:
    """The tensors up to the next convolution, that convolution, and whether only linear operators lie between."""
    tensors, signed = [first.output[0]], True
    while True:
        tensor = tensors[-1]
        if tensor in graph.outputs:
            raise _NoPairError(f"{tensor} is an output of the graph")
        readers = graph.readers.get(tensor, [])
        if len(readers) != 1:
            raise _NoPairError(f"{len(readers)} nodes read {tensor}: {_listed(readers) or 'none'}")
        (node,) = readers
        if node.input[:1] != [tensor]:
            raise _NoPairError(f"{_name(node)} ({node.op_type}) takes {tensor} as something else than its data")
        if _is(node, "Conv"):
            return tuple(tensors), node, signed
        if not _is(node, *POSITIVE, *LINEAR):
            raise _NoPairError(f"a scale does not pass through {_name(node)} ({node.op_type})")
        if any(node.output[1:]):
            raise _NoPairError(f"{_name(node)} ({node.op_type}) has more than one output")
        signed = signed and node.op_type in LINEAR
        tensors.append(node.output[0])


def _names_read(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, and what the graphs inside it read."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        inner = [attribute.g] if attribute.type == AttributeProto.GRAPH else list(attribute.graphs)
        for graph in inner:
            yield from (value.name for value in graph.output)
            for child in graph.node:
                yield from _names_read(child)


def _is(node: onnx.NodeProto, *operators: str) -> bool:
    return node.op_type in operators and node.domain in ("", "ai.onnx")


def _groups(conv: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in conv.attribute if attribute.name == "group"), 1)


def _is_depthwise(conv: onnx.NodeProto, shape: tuple[int, ...]) -> bool:
    """One kernel per channel; with one channel a convolution is both, and counts as dense."""
    return _groups(conv) == shape[0] > 1 and shape[1] == 1


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])


def _listed(nodes: list[onnx.NodeProto]) -> str:
    return ", ".join(_name(node) for node in nodes)
