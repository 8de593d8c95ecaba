"""Rewrites that turn the exporter's idioms into plain operators.

ReduceMean over H and W      GlobalAveragePool
Reshape of (N, C, 1, 1)      Flatten
MaxPool, then Relu           Relu, then MaxPool: they commute, and every runtime fuses Conv with Relu
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from onnxscript.rewriter import pattern, rewrite


def _mean(op: Any, x: Any, axes: Any) -> Any:
    return op.ReduceMean(x, axes, _allow_other_attributes=True, _outputs=["mean"])


def _mean_is_global(_: Any, x: ir.Value, axes: ir.Value, mean: ir.Value) -> bool:
    node = mean.producer()
    keeps = node is not None and _int_attribute(node, "keepdims", 1) == 1
    over = ir.convenience.get_const_tensor(axes)
    rank = len(x.shape) if x.shape is not None else 0
    return keeps and rank == 4 and over is not None and {int(axis) % 4 for axis in over.numpy().ravel()} == {2, 3}


def _global_pool(op: Any, x: ir.Value, axes: ir.Value, mean: ir.Value) -> Any:
    return op.GlobalAveragePool(x)


def _reshape(op: Any, x: Any, shape: Any) -> Any:
    return op.Reshape(x, shape, _allow_other_attributes=True, _outputs=["flat"])


def _reshape_flattens(_: Any, x: ir.Value, shape: ir.Value, flat: ir.Value) -> bool:
    before, after = x.shape, flat.shape
    if before is None or after is None or len(before) != 4 or len(after) != 2:
        return False
    return before[2] == 1 and before[3] == 1 and before[1] == after[1] and before[0] == after[0]


def _flatten(op: Any, x: ir.Value, shape: ir.Value, flat: ir.Value) -> Any:
    return op.Flatten(x, axis=1)


def _pool_then_relu(op: Any, x: Any) -> Any:
    return op.Relu(op.MaxPool(x, _allow_other_attributes=True, _outputs=["pooled"]))


def _pool_has_one_output(_: Any, x: ir.Value, pooled: ir.Value) -> bool:
    node = pooled.producer()
    return node is not None and len(node.outputs) == 1


def _relu_then_pool(op: Any, x: ir.Value, pooled: ir.Value) -> Any:
    node = pooled.producer()
    assert node is not None
    return op.MaxPool(op.Relu(x), **{name: attribute.value for name, attribute in node.attributes.items()})


RULES = (
    pattern.RewriteRule(_mean, _global_pool, _mean_is_global, name="mean to pool"),
    pattern.RewriteRule(_reshape, _flatten, _reshape_flattens, name="reshape to flatten"),
    pattern.RewriteRule(_pool_then_relu, _relu_then_pool, _pool_has_one_output, name="relu before pool"),
)


def _int_attribute(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default


def make_plain(model: ir.Model) -> ir.Model:
    """Rewrite a graph in place, and clear the exporter's metadata (stack traces hold paths of the machine).

    Args:
        model: As torch's exporter gives it.

    Returns:
        The same model.
    """
    model = rewrite(model, pattern_rewrite_rules=RULES)
    RemoveUnusedNodesPass()(model)
    ClearMetadataAndDocStringPass()(model)
    return model
