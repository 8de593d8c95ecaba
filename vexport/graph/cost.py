"""What a graph costs, node by node: parameters, multiply-accumulates, other operations, bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import onnx
from onnx import TensorProto

from vexport.errors import InputError

PRECISIONS: Mapping[int, str] = MappingProxyType(
    {
        TensorProto.FLOAT: "fp32",
        TensorProto.FLOAT16: "fp16",
        TensorProto.BFLOAT16: "bf16",
        TensorProto.INT8: "int8",
        TensorProto.UINT8: "uint8",
        TensorProto.DOUBLE: "fp64",
    }
)
POINTWISE = frozenset({
    "Abs", "Add", "And", "BatchNormalization", "BiasGelu", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "DequantizeLinear", "Div", "Elu", "Equal", "Erf", "Exp", "FastGelu", "Floor", "Gelu", "Greater", "HardSigmoid",
    "HardSwish", "LeakyRelu", "Less", "Log", "Max", "Min", "Mish", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "QuantizeLinear", "QuickGelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus",
    "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Where", "Xor",
})  # fmt: skip
REDUCING = frozenset({
    "ArgMax", "ArgMin", "CumSum", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare",
})  # fmt: skip
POOLING = frozenset({"AveragePool", "LpPool", "MaxPool"})
MOVING = frozenset({
    "Compress", "Concat", "DepthToSpace", "Expand", "Gather", "GatherElements", "GatherND", "Pad",
    "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Tile", "Transpose", "Trilu",
})  # fmt: skip
VIEWS = frozenset({
    "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze",
})  # fmt: skip
# Operations per number given, by convention: softmax takes maximum, difference, exponential, sum and quotient.
_NORMALISING = MappingProxyType(
    {"Softmax": 5, "LogSoftmax": 5, "LayerNormalization": 8, "InstanceNormalization": 8, "GroupNormalization": 8}
    | {"RMSNormalization": 5, "SimplifiedLayerNormalization": 5, "LpNormalization": 3, "LRN": 8, "Resize": 4}
)
# Constants up to this many numbers may be shapes, which shape inference reads; larger ones are weights.
_SHAPE_NUMBERS = 64


class Tensor(NamedTuple):
    """Shape and ONNX element type; shape None where it cannot be inferred, type 0 likewise."""

    shape: tuple[int, ...] | None
    kind: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape) if self.shape is not None else 0

    @property
    def bytes(self) -> int:
        return self.numbers * (int(onnx.helper.tensor_dtype_to_np_dtype(self.kind).itemsize) if self.kind else 0)


NOTHING = Tensor(None, 0)


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
        operations: Of pointwise work, pools, reductions and normalisation; 0 for those with MACs.
    """

    name: str
    operator: str
    precision: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    bytes_moved: int
    operations: int = 0

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
    tensors = infer_tensors(model, batch, (size, size))
    weights = {tensor.name for tensor in model.graph.initializer}
    return [_cost(node, tensors, weights) for node in model.graph.node if _given(node, tensors).kind in PRECISIONS]


def infer_tensors(model: onnx.ModelProto, batch: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Shape and type of every tensor of a graph. The weights' data are neither read nor copied.

    Args:
        model: Not changed.
        batch: Filled in where the graph leaves it open.
        size: Height and width, likewise.

    Raises:
        InputError: shapes cannot be inferred at this batch and size.
    """
    bare = _without_weights(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in bare.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if value.name not in constants and (not dim.HasField("dim_value") or dim.dim_value < 1):
                dim.dim_value = batch if axis == 0 else size[1] if axis == 3 else size[0]
    try:
        graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise InputError(
            "the graph's shapes cannot be inferred",
            details=[str(error).splitlines()[0]],
            hint="try another batch, or export it again",
        ) from error
    tensors = {}
    for value in (*graph.value_info, *graph.output, *graph.input):
        kind = value.type.tensor_type
        shape = tuple(int(dim.dim_value) if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
        tensors[value.name] = Tensor(shape if kind.HasField("shape") and -1 not in shape else None, kind.elem_type)
    return tensors | {t.name: Tensor(tuple(t.dims), t.data_type) for t in model.graph.initializer}


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with constants of no contents, but for those that may be shapes."""
    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    bare.graph.name = model.graph.name
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SHAPE_NUMBERS and tensor.data_location != TensorProto.EXTERNAL:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.initializer.append(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
    return bare


def _cost(node: onnx.NodeProto, tensors: Mapping[str, Tensor], weights: set[str]) -> LayerCost:
    given = _given(node, tensors)
    used = [tensors[name] for name in (*node.input, *node.output) if name in tensors]
    return LayerCost(
        name=node.name,
        operator=node.op_type,
        precision=PRECISIONS[given.kind],
        shape=given.shape or (),
        parameters=sum(tensors[name].numbers for name in node.input if name in weights),
        macs=count_macs(node, tensors) or 0,
        bytes_moved=sum(tensor.bytes for tensor in used),
        operations=count_operations(node, tensors) or 0,
    )


def _given(node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> Tensor:
    return tensors.get(node.output[0], NOTHING)


def count_macs(node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> int | None:
    """Multiply-accumulates of a convolution or matrix product; None for other operators and unknown shapes."""
    count = _MACS.get(node.op_type)
    output = _given(node, tensors).shape
    inputs = [tensors.get(name, NOTHING).shape for name in node.input]
    if count is None or output is None:
        return None
    first, second = _FACTORS.get(node.op_type, (0, 1))
    a, b = inputs[first], inputs[second]
    return count(node, a, b, output) if a is not None and b is not None else None


def count_operations(node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> int | None:
    """Operations of what has no multiply-accumulates; None for operators that are not known.

    One per number given for pointwise work, whatever the function; one per number of the window for pools; one per
    number read for reductions; 5 to 8 per number given for normalisation; none for what only moves numbers.
    """
    given = _given(node, tensors).numbers
    if node.op_type in MOVING or node.op_type in VIEWS:
        return 0
    if node.op_type in POINTWISE:
        return given
    if node.op_type in REDUCING:
        return tensors.get(node.input[0], NOTHING).numbers
    if node.op_type in POOLING:
        window = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "kernel_shape"), [])
        return given * int(math.prod(window))
    return given * _NORMALISING[node.op_type] if node.op_type in _NORMALISING else None


_Shape = tuple[int, ...]


def _conv(_node: onnx.NodeProto, _input: _Shape, weight: _Shape, output: _Shape) -> int:
    """Every output value takes one weight per input channel of its group and kernel position."""
    return math.prod(output) * math.prod(weight[1:])


def _conv_transpose(_node: onnx.NodeProto, images: _Shape, weight: _Shape, _output: _Shape) -> int:
    """Every input value is spread over the output channels of its group and every kernel position."""
    return math.prod(images) * math.prod(weight[1:])


def _gemm(node: onnx.NodeProto, a: _Shape, _b: _Shape, output: _Shape) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(output) * (a[0] if transposed else a[-1])


def _matmul(_node: onnx.NodeProto, a: _Shape, _b: _Shape, output: _Shape) -> int:
    return math.prod(output) * (a[-1] if a else 0)


_MACS: Mapping[str, Callable[[onnx.NodeProto, _Shape, _Shape, _Shape], int]] = MappingProxyType(
    dict.fromkeys(("Conv", "ConvInteger", "QLinearConv", "FusedConv"), _conv)
    | {"ConvTranspose": _conv_transpose, "Gemm": _gemm, "FusedGemm": _gemm}
    | dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), _matmul)
)
COMPUTING = frozenset(_MACS)
# Where the two factors stand among a node's inputs; otherwise first and second.
_FACTORS: Mapping[str, Sequence[int]] = MappingProxyType({"QLinearConv": (0, 3), "QLinearMatMul": (0, 3)})


def factors(node: onnx.NodeProto) -> tuple[str, str]:
    """Names of the two tensors that a computing node multiplies."""
    first, second = _FACTORS.get(node.op_type, (0, 1))
    return str(node.input[first]), str(node.input[second])
