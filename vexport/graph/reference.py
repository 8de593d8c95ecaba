"""A graph computed in float64, to tell what a change of its weights does apart from rounding.

ONNX Runtime has no float64 convolution on the CPU. Convolutions and max-pools are computed by torch here, every other
operator by onnx's own reference implementation, which follows the type of its inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from vexport.errors import InputError

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


def run_float64(
    model: onnx.ModelProto, images: Array, weights: Mapping[str, Float64] = MappingProxyType({})
) -> dict[str, Array]:
    """Run a graph in float64; a tensor is let go once nobody needs it any more.

    Args:
        model: With one input; its FP32 weights are widened. Not changed.
        images: (N, C, H, W), of any floating type.
        weights: Float64 values that take the place of initializers, by name.

    Returns:
        The graph's outputs by name.

    Raises:
        InputError: a tensor in `weights` is no initializer of the graph or has another shape, or onnx has no reference
            for an operator.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, values in weights.items():
        if name not in tensors or tuple(tensors[name].dims) != values.shape:
            raise InputError(f"{name} {values.shape} is no weight of the graph", hint="give weights of the same graph")
    outputs = {value.name for value in model.graph.output}
    (image,) = [value.name for value in model.graph.input if value.name not in tensors]
    left = Counter(name for node in model.graph.node for name in node.input)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    known: dict[str, Array] = {image: images.astype(np.float64)}
    for node in model.graph.node:
        inputs = []
        for name in node.input:
            if name in tensors and name not in known:
                known[name] = weights[name] if name in weights else _wide(tensors[name])
            inputs.append(known[name] if name else None)
        known.update(zip(node.output, _compute(node, inputs, opsets), strict=False))
        left.subtract(node.input)
        for name in {*node.input, *node.output}:
            if left[name] <= 0 and name not in outputs:
                known.pop(name, None)
    return {value.name: known[value.name] for value in model.graph.output}


def _wide(tensor: onnx.TensorProto) -> Array:
    values = numpy_helper.to_array(tensor)
    return values.astype(np.float64) if tensor.data_type == TensorProto.FLOAT else values


def _compute(node: onnx.NodeProto, inputs: Sequence[Array | None], opsets: Mapping[str, int]) -> list[Array]:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    fast = _FAST.get(node.op_type)
    plain = attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and not attributes.get("ceil_mode", 0)
    if fast is not None and plain and len(node.output) == 1:
        given = [torch.from_numpy(np.ascontiguousarray(values)) for values in inputs if values is not None]
        return [fast(attributes, *given).numpy()]
    feeds = {name: values for name, values in zip(node.input, inputs, strict=True) if name}
    try:
        return list(ReferenceEvaluator(node, opsets=dict(opsets)).run(None, feeds))
    except NotImplementedError as error:
        raise InputError(
            f"onnx has no reference for the operator {node.op_type}", hint="compare the graph in ONNX Runtime"
        ) from error


def _padding(attributes: Mapping[str, Any], rank: int) -> list[int]:
    """torch's order of padding, the last axis first, from ONNX's."""
    pads = attributes.get("pads") or [0] * (2 * rank)
    return [side for axis in reversed(range(rank)) for side in (pads[axis], pads[rank + axis])]


def _conv(attributes: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.ndim - 2
    result: Tensor = (F.conv1d, F.conv2d, F.conv3d)[rank - 1](
        F.pad(x, _padding(attributes, rank)),
        weight,
        bias,
        stride=attributes.get("strides", 1),
        dilation=attributes.get("dilations", 1),
        groups=attributes.get("group", 1),
    )
    return result


def _max_pool(attributes: Mapping[str, Any], x: Tensor) -> Tensor:
    rank = x.ndim - 2
    result: Tensor = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1](
        F.pad(x, _padding(attributes, rank), value=float("-inf")),
        attributes["kernel_shape"],
        stride=attributes.get("strides", 1),
        dilation=attributes.get("dilations", 1),
    )
    return result


_FAST: Mapping[str, Callable[..., Tensor]] = MappingProxyType({"Conv": _conv, "MaxPool": _max_pool})
