"""What a graph costs, layer by layer: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import onnx
from onnx import TensorProto

from vexport.errors import InputError

_NAMES: Mapping[int, str] = MappingProxyType(
    {
        TensorProto.FLOAT: "fp32",
        TensorProto.FLOAT16: "fp16",
        TensorProto.BFLOAT16: "bf16",
        TensorProto.INT8: "int8",
        TensorProto.UINT8: "uint8",
        TensorProto.DOUBLE: "fp64",
    }
)


@dataclass(frozen=True)
class LayerCost:
    """One node that computes or moves activations, at one batch.

    Args:
        name: Of the node.
        operator: ONNX's.
        precision: Of what it gives.
        shape: Of what it gives; () where it cannot be inferred.
        parameters: Numbers in its initialisers.
        macs: Multiply-accumulates of convolutions and matrix products; 0 for others.
        bytes_moved: What it reads and writes, weights included, each once.
    """

    name: str
    operator: str
    precision: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    bytes_moved: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"shape": list(self.shape)}


def count_layers(model: onnx.ModelProto, batch: int = 1, size: int = 224) -> list[LayerCost]:
    """The cost of every node that gives a floating-point or 8-bit tensor.

    Args:
        model: A graph, with or without its weights' data; not changed.
        batch: Filled in where the graph leaves it open.
        size: Height and width, likewise.

    Raises:
        InputError: shapes cannot be inferred at this batch and size.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for axis, dim in enumerate(fixed.graph.input[0].type.tensor_type.shape.dim):
        if not dim.HasField("dim_value") or dim.dim_value < 1:
            dim.dim_value = batch if axis == 0 else size
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    try:
        graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise InputError(
            "the graph's shapes cannot be inferred", details=[str(error).splitlines()[0]], hint="try another batch"
        ) from error
    tensors = {t.name: (tuple(t.dims), t.data_type) for t in graph.initializer}
    weights = set(tensors)
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        tensors[value.name] = (tuple(dim.dim_value for dim in kind.shape.dim), kind.elem_type)
    return [_cost(node, tensors, weights) for node in graph.node if tensors.get(node.output[0], ((), 0))[1] in _NAMES]


def _cost(node: onnx.NodeProto, tensors: Mapping[str, tuple[tuple[int, ...], int]], weights: set[str]) -> LayerCost:
    shape, kind = tensors[node.output[0]]
    inputs = [tensors.get(name, ((), 0))[0] for name in node.input]
    count = _MACS.get(node.op_type)
    used = [tensors[name] for name in (*node.input, *node.output) if name in tensors]
    return LayerCost(
        name=node.name,
        operator=node.op_type,
        precision=_NAMES[kind],
        shape=shape,
        parameters=sum(math.prod(tensors[name][0]) for name in node.input if name in weights),
        macs=count(node, inputs, shape) if count else 0,
        bytes_moved=sum(math.prod(dims) * _size(dtype) for dims, dtype in used),
    )


def _size(dtype: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize) if dtype else 0


def _conv(_node: onnx.NodeProto, inputs: Sequence[tuple[int, ...]], output: tuple[int, ...]) -> int:
    """Every output value takes one weight per input channel of its group and kernel position."""
    return math.prod(output) * math.prod(inputs[1][1:])


def _gemm(node: onnx.NodeProto, inputs: Sequence[tuple[int, ...]], output: tuple[int, ...]) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(output) * (inputs[0][0] if transposed else inputs[0][-1])


def _matmul(_node: onnx.NodeProto, inputs: Sequence[tuple[int, ...]], output: tuple[int, ...]) -> int:
    return math.prod(output) * (inputs[0][-1] if inputs[0] else 0)


_MACS: Mapping[str, Callable[[onnx.NodeProto, Sequence[tuple[int, ...]], tuple[int, ...]], int]] = MappingProxyType(
    {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}
)
