"""How many layers with weights stand one after another in a graph."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from vexport.graph.cost import COMPUTING, NOTHING, Tensor, factors, infer_tensors


def longest_path(model: onnx.ModelProto, *, size: tuple[int, int], depthwise: bool = True) -> int:
    """Layers with weights on the longest path from the images to the logits, as published depths count them.

    Convolutions and matrix products with weights count. Layers beside the path, such as the downsampling convolution
    of a shortcut, do not; nor do those of a gate, which only scales what others give (squeeze and excite).
    `vexport.model.depth` counts modules by the same rule.

    Args:
        model: Not changed.
        size: Height and width, filled in where the graph leaves them open.
        depthwise: Whether depthwise convolutions count; those of series activations do not.

    Raises:
        InputError: shapes cannot be inferred at this size.
    """
    tensors = infer_tensors(model, 1, size)
    weights = {tensor.name for tensor in model.graph.initializer}
    # Of tensors that depend on the images; all others are weights, or made of weights only.
    depths = {value.name: 0 for value in model.graph.input if value.name not in weights}
    for node in model.graph.node:
        depends = [name for name in node.input if name in depths]
        if depends:
            if node.op_type == "Mul":
                depends = _without_gates(depends, tensors)
            counts = _has_weights(node, depths) and (depthwise or not _is_depthwise(node, tensors))
            depth = max(depths[name] for name in depends) + int(counts)
            depths.update(dict.fromkeys(filter(None, node.output), depth))
    return max(depths.get(value.name, 0) for value in model.graph.output)


def _without_gates(names: list[str], tensors: Mapping[str, Tensor]) -> list[str]:
    """A gate has fewer numbers than what it scales."""
    numbers = [tensors.get(name, NOTHING).numbers for name in names]
    return [name for name, one in zip(names, numbers, strict=True) if one == max(numbers)]


def _has_weights(node: onnx.NodeProto, depths: Mapping[str, int]) -> bool:
    """Whether it multiplies by weights; the products of attention do not."""
    return node.op_type in COMPUTING and any(name not in depths for name in factors(node))


def _is_depthwise(node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> bool:
    """Whether every channel has a filter of its own and is seen by no other."""
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    weight = tensors.get(factors(node)[1], NOTHING).shape
    return groups > 1 and weight is not None and weight[0] == groups and weight[1] == 1
