"""Names for nodes and tensors that people recognise: those of the network's modules.

A convolution takes the name of its weight (`stages.0.conv`), what follows it is named after it (`stages.0.conv.relu`),
and a tensor is named after the node that makes it. So per-layer reports speak of the checkpoint's own names.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx


def name_after_modules(model: onnx.ModelProto) -> None:
    """Rename nodes and inner tensors in place; inputs, outputs and initialisers keep their names.

    Args:
        model: Its initialisers carry the module's tensor names.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    fixed = {value.name for value in [*graph.input, *graph.output]} | weights
    renamed: dict[str, str] = {}
    taken = set(fixed)
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
        node.name = _unique(_name_of(node, weights), taken.__contains__)
        taken.add(node.name)
        for position, name in enumerate(node.output):
            if name and name not in fixed:
                renamed[name] = node.name if position == 0 else f"{node.name}.{position}"
                node.output[position] = renamed[name]
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)


def _name_of(node: onnx.NodeProto, weights: set[str]) -> str:
    own = next((name for name in node.input if name in weights and name.endswith(".weight")), None)
    if own is not None:
        return str(own).removesuffix(".weight")
    first = next((name for name in node.input if name and name not in weights), "")
    return f"{first}.{node.op_type.lower()}" if first else node.op_type.lower()


def _unique(name: str, taken: Callable[[str], bool]) -> str:
    if not taken(name):
        return name
    number = 1
    while taken(f"{name}_{number}"):
        number += 1
    return f"{name}_{number}"
