"""Layers as a backend runs them, and what each must compute, read and write.

A layer is one node that computes, reduces, pools, normalises or moves numbers, together with

- pointwise nodes that follow it (Relu, Add of a shortcut, the parts of a GELU, QuantizeLinear): they are applied to
  the result before it goes to memory. A pointwise node joins the layer of its first input of its own size, where
  nothing else that it needs waits for that layer;
- DequantizeLinear nodes before it: it reads the 8-bit numbers;
- views of what it gives (Reshape, Flatten and so on): they cost nothing.

So every tensor that one layer gives and another takes is written once and read once per reading layer, at the type in
which it is stored; tensors inside a layer are never in memory. Pools are layers of their own: no backend at hand
joins them to the convolution before. What is computed of constants only is done once, when the graph is loaded.

A backend may do better than this (TensorRT moves a QuantizeLinear ahead of a max-pool, or skips a Concat) and a cache
may hold a tensor between two layers. `resident_bytes` is what remains then: weights, input and output of the network.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx

from vexport.errors import InputError
from vexport.graph.cost import COMPUTING, NOTHING, PRECISIONS, count_macs, count_operations, factors, infer_tensors
from vexport.graph.grouping import Group, Grouping, name_of

_PARTIAL = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})  # read only what they give
_EIGHT_BITS = ("int8", "uint8")


@dataclass(frozen=True)
class FusedLayer:
    """What one layer must do at least, at one batch.

    Args:
        name: Of its main node: the one with most multiply-accumulates, or the first.
        operator: Of that node.
        nodes: Names of all its nodes; a node without a name has that of its first output.
        operators: Of all its nodes.
        precision: In which it multiplies; of what it gives where it does not multiply. `int8` where both factors are
            stored in 8 bits.
        shape: Of what the main node gives; () where it cannot be inferred.
        macs: Multiply-accumulates.
        operations: Others: pointwise, pools, reductions, normalisation.
        weight_bytes: Constants that it reads.
        input_bytes: Activations that it reads, each once.
        output_bytes: Activations that it writes for others.
        known: False where an operator or shape is not known: its bytes are counted as far as they are known, and no
            operations.
    """

    name: str
    operator: str
    nodes: tuple[str, ...]
    operators: tuple[str, ...]
    precision: str
    shape: tuple[int, ...]
    macs: int
    operations: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    known: bool = True

    @property
    def flops(self) -> int:
        """Two per multiply-accumulate."""
        return 2 * self.macs

    @property
    def bytes_moved(self) -> int:
        return self.weight_bytes + self.input_bytes + self.output_bytes

    def to_json(self) -> dict[str, Any]:
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return plain | {"flops": self.flops, "bytes_moved": self.bytes_moved}


@dataclass(frozen=True)
class GraphCost:
    """What a network must do at least, at one batch.

    Args:
        batch: Images.
        layers: In the graph's order.
        weight_bytes: Constants that layers read, each once.
        input_bytes: The network's input.
        output_bytes: Its output.
        labels: Every name that a profiler may call a node by (its own, its tensors', its number) to the name that
            `FusedLayer.nodes` has for it.
    """

    batch: int
    layers: tuple[FusedLayer, ...]
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    labels: dict[str, str] = field(repr=False)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def flops(self) -> int:
        return 2 * self.macs

    @property
    def operations(self) -> int:
        return sum(layer.operations for layer in self.layers)

    @property
    def layer_bytes(self) -> int:
        """What is moved when every layer reads from memory and writes to it."""
        return sum(layer.bytes_moved for layer in self.layers)

    @property
    def resident_bytes(self) -> int:
        """What is moved when everything between the layers stays in a cache."""
        return self.weight_bytes + self.input_bytes + self.output_bytes

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those of the layers that multiply, each once."""
        return tuple(dict.fromkeys(layer.precision for layer in self.layers if layer.macs))

    @property
    def unknown(self) -> tuple[str, ...]:
        """Layers of which only bytes are counted, as `name (operators)`."""
        return tuple(f"{layer.name} ({', '.join(layer.operators)})" for layer in self.layers if not layer.known)


def count_fused(
    model: onnx.ModelProto,
    *,
    batch: int | None = None,
    size: int | tuple[int, int] = 224,
    together: Sequence[Collection[str]] = (),
) -> GraphCost:
    """The layers of a graph and their cost. The weights' data are neither read nor copied.

    Args:
        model: Not changed.
        batch: Filled in where the graph leaves it open; None takes the graph's own, or 1.
        size: Height and width, likewise.
        together: Sets of node names that one kernel ran: their layers become one.

    Raises:
        InputError: the graph has another batch, or shapes cannot be inferred.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    dims = inputs[0].type.tensor_type.shape.dim if inputs else ()
    own = int(dims[0].dim_value) if dims else 0
    if batch is not None and (batch < 1 or own not in (0, batch)):
        raise InputError(
            f"the graph has a batch of {own or 'any number from 1'}, not {batch}",
            hint=f"count it at batch {own or 1}",
        )
    used = batch or own or 1
    tensors = infer_tensors(model, used, size if isinstance(size, tuple) else (size, size))
    grouping = Grouping(model, tensors, constants)
    grouping.merge(together)
    weights = {name for group in grouping.groups for name in grouping.reads(group) if name in grouping.constants}
    return GraphCost(
        batch=used,
        layers=tuple(_cost(group, grouping) for group in grouping.groups if group.nodes),
        weight_bytes=sum(grouping.bytes(name) for name in weights),
        input_bytes=sum(tensors.get(value.name, NOTHING).bytes for value in inputs),
        output_bytes=sum(tensors.get(value.name, NOTHING).bytes for value in model.graph.output),
        labels=grouping.labels,
    )


def _cost(group: Group, grouping: Grouping) -> FusedLayer:
    tensors = grouping.tensors
    main = max(group.nodes, key=lambda node: count_macs(node, tensors) or 0)
    reads = grouping.reads(group)
    return FusedLayer(
        name=name_of(main),
        operator=main.op_type,
        nodes=(*(name_of(node) for node in group.nodes), *group.aside),
        operators=tuple(node.op_type for node in group.nodes),
        precision=_precision(main, grouping),
        shape=tensors.get(main.output[0], NOTHING).shape or (),
        macs=sum(count_macs(node, tensors) or 0 for node in group.nodes),
        operations=sum(count_operations(node, tensors) or 0 for node in group.nodes),
        weight_bytes=sum(grouping.bytes(name) for name in reads & grouping.constants),
        input_bytes=sum(_taken(name, group, grouping) for name in reads - grouping.constants),
        output_bytes=sum(grouping.bytes(name) for name in grouping.writes(group)),
        known=all(map(grouping.is_known, group.nodes)),
    )


def _taken(name: str, group: Group, grouping: Grouping) -> int:
    """Bytes that a group reads of a tensor: what it picks where it only picks."""
    readers = [node for node in group.nodes if name in map(grouping.stored, node.input)]
    if not all(node.op_type in _PARTIAL for node in readers):
        return grouping.bytes(name)
    return min(grouping.bytes(name), sum(grouping.bytes(node.output[0]) for node in readers))


def _precision(node: onnx.NodeProto, grouping: Grouping) -> str:
    tensors = grouping.tensors
    given = PRECISIONS.get(tensors.get(node.output[0], NOTHING).kind, "")
    if node.op_type not in COMPUTING:
        return given
    kinds = [PRECISIONS.get(tensors.get(grouping.stored(name), NOTHING).kind, "") for name in factors(node)]
    if all(kind in _EIGHT_BITS for kind in kinds):
        return "int8"
    return given if given not in ("", *_EIGHT_BITS) else next((kind for kind in kinds if kind), "")
