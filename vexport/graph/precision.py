"""FP32 graph to FP16 or BF16: weights and activations in 16 bits, input and output left in FP32.

ONNX Runtime's converter does the work; what would overflow is found by measuring, kept in FP32 and joined. ModelOpt's
AutoCast 0.47 converts VanillaNet-5 and Swin-T to the same precisions with the same errors (1.0e-3, 0.9e-3), four to
seven times slower, and pins onnx 1.21 and onnxruntime-gpu 1.24.

For BF16 the FP16 graph is retyped, with the weights rounded anew from FP32, because the converter only knows FP16;
operators have BF16 definitions from opset 22 on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes.common import LiftConstantsToInitializersPass, TopologicalSortPass

from vexport.errors import ExportError
from vexport.graph.opset import set_opset

HalfPrecision = Literal["fp16", "bf16"]
BF16_OPSET = 22
_DTYPES: dict[str, Any] = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class WeightRange:
    """What becomes of one weight tensor in 16 bits.

    Args:
        node: The layer that uses it.
        tensor: Its name.
        values: How many.
        max_abs: Largest magnitude.
        overflow: Values beyond the largest finite number; they would become infinite.
        underflow: Non-zero values nearer to 0 than half the smallest number.
        subnormal: Values that keep fewer bits than the others.
    """

    node: str
    tensor: str
    values: int
    max_abs: float
    overflow: int
    underflow: int
    subnormal: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def largest(precision: HalfPrecision) -> float:
    """Largest finite number: 65504 for FP16, 3.39e38 for BF16."""
    return float(_limits(precision).max)


def _limits(precision: HalfPrecision) -> Any:
    return ml_dtypes.finfo(_DTYPES[precision])  # type: ignore[no-untyped-call]


def weight_ranges(model: onnx.ModelProto, precision: HalfPrecision) -> list[WeightRange]:
    """What 16 bits do to the FP32 weights, layer by layer, in the graph's order."""
    limits = _limits(precision)
    smallest, normal, top = float(limits.smallest_subnormal), float(limits.tiny), float(limits.max)
    users = {name: node.name for node in reversed(model.graph.node) for name in node.input}
    found = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        size = np.abs(numpy_helper.to_array(tensor))
        lost = (size > 0) & (size < smallest / 2)
        found.append(
            WeightRange(
                node=users.get(tensor.name, ""),
                tensor=tensor.name,
                values=int(size.size),
                max_abs=float(size.max(initial=0.0)),
                overflow=int((size > top).sum()),
                underflow=int(lost.sum()),
                subnormal=int(((size > 0) & (size < normal) & ~lost).sum()),
            )
        )
    return found


def lift_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its Constant nodes as initializers: weights are then in one place.

    Args:
        model: Any graph; not changed.
    """
    lifted = onnx_ir.from_proto(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(lifted)
    result = onnx_ir.to_proto(lifted)
    # Entries for weights among them: the converter would put casts between a weight and a node that stays in FP32.
    del result.graph.value_info[:]
    return result


def overflowing_nodes(model: onnx.ModelProto, max_abs: dict[str, float], limit: float) -> dict[str, str]:
    """Nodes that 16 bits cannot hold: a weight, or an activation that they take or give, is beyond `limit`.

    Args:
        model: The FP32 graph.
        max_abs: Largest magnitude of each tensor, measured.
        limit: Of the magnitude.

    Returns:
        The reason by node name.
    """
    weights = {
        tensor.name: float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    found = {}
    for node in model.graph.node:
        for names, what in ((node.input, "takes"), (node.output, "gives")):
            for name in names:
                if name in weights and weights[name] > limit:
                    found[node.name] = f"weight {name} reaches {weights[name]:.3g}"
                elif name in max_abs and not max_abs[name] <= limit:
                    found.setdefault(node.name, f"it {what} activations up to {max_abs[name]:.3g}")
    return found


def convert_precision(
    model: onnx.ModelProto, precision: HalfPrecision, *, keep: Collection[str] = ()
) -> onnx.ModelProto:
    """A graph that computes in FP16 or BF16 and still takes and gives FP32.

    Args:
        model: An FP32 graph with named nodes; not changed.
        precision: `fp16` or `bf16`.
        keep: Names of nodes that stay in FP32, with casts around them.

    Raises:
        ExportError: the converter fails, or an operator has no BF16 definition.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    source = onnx.ModelProto()
    source.CopyFrom(model)
    _give_copies(source, keep)
    try:
        half = convert_float_to_float16(
            source,
            keep_io_types=True,
            node_block_list=list(keep),
            max_finite_val=largest("fp16"),
            # Nothing is blocked by kind: what overflows is found by measuring.
            op_block_list=[],
        )
    except (ValueError, AssertionError, KeyError, TypeError) as error:
        raise ExportError(
            f"ONNX Runtime cannot convert the graph to {precision}",
            details=[str(error).splitlines()[0] if str(error) else type(error).__name__],
            hint="keep it in FP32, and report it with the graph",
        ) from error
    _join_kept(half)
    _round_weights(half, model, precision)
    if precision == "bf16":
        _retype(half)
    # The converter appends casts at the end and leaves the types of intermediate tensors as they were.
    del half.graph.value_info[:]
    ordered = onnx_ir.from_proto(half)
    TopologicalSortPass()(ordered)
    result = onnx_ir.to_proto(ordered)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return set_opset(result, max(opset, BF16_OPSET) if precision == "bf16" else opset)


def _join_kept(half: onnx.ModelProto) -> None:
    """Take out FP16 between neighbours that both stay in FP32, in place: what overflows would do so in the casts."""

    def casts(to: int) -> dict[str, onnx.NodeProto]:
        return {
            node.output[0]: node
            for node in half.graph.node
            if node.op_type == "Cast" and any(a.name == "to" and a.i == to for a in node.attribute)
        }

    down, up = casts(TensorProto.FLOAT16), casts(TensorProto.FLOAT)
    outputs = {value.name for value in half.graph.output}
    direct = {
        name: down[node.input[0]].input[0] for name, node in up.items() if node.input[0] in down and name not in outputs
    }
    for node in half.graph.node:
        for index, name in enumerate(node.input):
            if name in direct:
                node.input[index] = direct[name]
            elif node.output[0] in outputs and node.output[0] in up and name in down:
                node.input[index] = down[name].input[0]  # the last node stays in FP32: its cast changes nothing
    # The casts up go first, then the casts down that nothing reads any more.
    for names in (set(direct), set(down)):
        used = {name for node in half.graph.node for name in node.input} | outputs
        kept = [node for node in half.graph.node if node.output[0] not in names or node.output[0] in used]
        del half.graph.node[:]
        half.graph.node.extend(kept)


def _give_copies(model: onnx.ModelProto, keep: Collection[str]) -> None:
    """Weights that a node in FP32 shares with others: a copy of its own, in place, so that it stays exact."""
    others = {name for node in model.graph.node if node.name not in keep for name in node.input}
    shared = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in others}
    made = set()
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if node.name not in keep or name not in shared:
                continue
            node.input[index] = f"{name}.fp32"
            if name not in made:
                made.add(name)
                copied = model.graph.initializer.add()
                copied.CopyFrom(shared[name])
                copied.name = f"{name}.fp32"


def _round_weights(half: onnx.ModelProto, source: onnx.ModelProto, precision: HalfPrecision) -> None:
    """16-bit weights and constants, in place: rounded once from FP32, to the nearest.

    The converter moves what is nearer to 0 than the smallest number away from it, and knows no BF16.
    """
    originals = {tensor.name: tensor for tensor in source.graph.initializer}
    constants = {
        node.output[0]: attribute.t
        for node in source.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.TENSOR
    }

    def rounded(original: onnx.TensorProto, name: str) -> onnx.TensorProto:
        values = numpy_helper.to_array(original)
        with np.errstate(over="ignore"):
            return numpy_helper.from_array(values.astype(_DTYPES[precision]), name)

    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(rounded(originals.get(tensor.name, tensor), tensor.name))
    for node in half.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT16:
                attribute.t.CopyFrom(rounded(constants.get(node.output[0], attribute.t), attribute.t.name))


def _retype(half: onnx.ModelProto) -> None:
    """Casts to FP16 become casts to BF16, in place."""
    for node in half.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16


def emulate_half(half: onnx.ModelProto) -> onnx.ModelProto:
    """An FP32 graph that gives what a 16-bit graph gives on a device: every 16-bit result is rounded to 16 bits.

    Each operator computes in FP32 and rounds what it gives, as tensor cores multiply in 16 bits and accumulate in 32.
    ONNX Runtime's own CPU run of the 16-bit graph does not show this: it has no FP16 kernels for most operators, lets
    neighbours pass FP32 to each other, and so hides an activation that overflows; for BF16 it has none at all.

    What a DequantizeLinear gives is not rounded: a convolution takes the INT8 values themselves.

    Args:
        half: A graph by `convert_precision`; not changed.
    """
    result = onnx.ModelProto()
    result.CopyFrom(half)
    narrow = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    graph = onnx.shape_inference.infer_shapes(half).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    for tensor in result.graph.initializer:
        if tensor.data_type in narrow:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes = []
    for node in result.graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            kind = types.get(name, TensorProto.UNDEFINED)
            if kind not in narrow or node.op_type == "DequantizeLinear":
                continue
            node.output[index] = f"{name}.exact"
            casts = ((f"{name}.exact", f"{name}.rounded", kind), (f"{name}.rounded", name, TensorProto.FLOAT))
            nodes += [helper.make_node("Cast", [x], [y], name=f"{y}.cast", to=to) for x, y, to in casts]
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    return result


def graph_precision(model: onnx.ModelProto) -> str:
    """`fp32`, `fp16`, `bf16` or `int8`: what most weights, or the Q/DQ nodes, say."""
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    names = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    sizes: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type in names:
            name = names[tensor.data_type]
            sizes[name] = sizes.get(name, 0) + int(np.prod(tensor.dims))
    return max(sizes, key=lambda name: sizes[name], default="fp32")
