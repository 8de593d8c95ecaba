"""Which nodes of a graph make one layer: see `vexport.graph.fused`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import onnx

from vexport.graph.cost import COMPUTING, NOTHING, POINTWISE, PRECISIONS, VIEWS, Tensor, count_macs, count_operations

_DQ = "DequantizeLinear"
_DOMAINS = ("", "ai.onnx", "com.microsoft")


@dataclass
class Group:
    """The nodes of one layer.

    Args:
        nodes: Those that do something, in order.
        aside: Names of views and DequantizeLinear nodes that belong to it.
        before: Numbers of the groups that must have run.
    """

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)
    before: set[int] = field(default_factory=set)


class Grouping:
    """One pass over a graph in its order, which puts every node into a group.

    Args:
        model: Not changed.
        tensors: Shape and type of every tensor.
        constants: Names of the initialisers.
    """

    def __init__(self, model: onnx.ModelProto, tensors: dict[str, Tensor], constants: set[str]) -> None:
        self.tensors, self.constants = tensors, set(constants)
        self.groups: list[Group] = []
        self.labels: dict[str, str] = {}
        self._alias: dict[str, str] = {}  # a view or dequantised tensor: the one that is stored
        self._scales: dict[str, list[str]] = {}  # dequantised tensor: the constants that this takes
        self._waiting: dict[str, str] = {}  # dequantised tensor: its node, until somebody reads it
        self._maker: dict[str, int] = {}  # stored tensor: its group
        self._outputs = {value.name for value in model.graph.output}
        for index, node in enumerate(model.graph.node):
            self._label(index, node)
            self._place(node)
        self._needed = {self.stored(name) for name in self._outputs}
        self._readers: dict[str, set[int]] = {}
        self._index_readers()

    def stored(self, name: str) -> str:
        """The tensor in memory that holds these numbers."""
        while name in self._alias:
            name = self._alias[name]
        return name

    def bytes(self, name: str) -> int:
        """Of a tensor; none for shapes and indices."""
        tensor = self.tensors.get(name, NOTHING)
        return 0 if tensor.kind == onnx.TensorProto.INT64 else tensor.bytes

    def _label(self, index: int, node: onnx.NodeProto) -> None:
        label = name_of(node)
        # What a node is called by itself wins over a tensor of that name.
        for name in node.output:
            self.labels.setdefault(name, label)
        if not node.name:
            self.labels.setdefault(f"{node.op_type}_{index}", label)
        self.labels[label] = label

    def _place(self, node: onnx.NodeProto) -> None:
        named = [name for name in node.input if name]
        kinds = [self.tensors.get(name, NOTHING).kind for name in node.output if name]
        if node.op_type == _DQ and node.output[0] not in self._outputs:
            self._alias[node.output[0]] = node.input[0]
            self._scales[node.output[0]] = named[1:]
            self._waiting[node.output[0]] = name_of(node)
        elif all(self.stored(name) in self.constants for name in named) and not node.op_type.startswith("Random"):
            self.constants.update(node.output)
        elif node.op_type not in COMPUTING and all(kind and kind not in PRECISIONS for kind in kinds):
            self.constants.update(node.output)  # arithmetic of shapes, masks and indices
        elif node.op_type in VIEWS and node.domain in _DOMAINS:
            self._alias[node.output[0]] = node.input[0]
            maker = self._maker.get(self.stored(node.input[0]))
            if maker is not None:
                self.groups[maker].aside.append(name_of(node))
        else:
            self._join(node, named)

    def _join(self, node: onnx.NodeProto, named: list[str]) -> None:
        makers = {self._maker[self.stored(name)] for name in named if self.stored(name) in self._maker}
        index = self._host(node, named, makers)
        if index is None:
            index = len(self.groups)
            self.groups.append(Group())
        group = self.groups[index]
        group.nodes.append(node)
        for name in named:
            while name in self._alias:
                if name in self._waiting:
                    group.aside.append(self._waiting.pop(name))
                name = self._alias[name]
        self._maker.update(dict.fromkeys(filter(None, node.output), index))
        new = {one for maker in makers - {index} for one in (maker, *self.groups[maker].before)}
        for later in (group, *(one for one in self.groups if index in one.before)):
            later.before |= new

    def _host(self, node: onnx.NodeProto, named: list[str], makers: set[int]) -> int | None:
        """The group that a pointwise node joins."""
        if node.op_type not in POINTWISE or node.domain not in _DOMAINS:
            return None
        size = self.tensors.get(node.output[0], NOTHING).numbers
        for name in named:
            index = self._maker.get(self.stored(name))
            if index is None or not size or self.tensors.get(name, NOTHING).numbers != size:
                continue
            waits = any(index in self.groups[maker].before for maker in makers - {index})
            if not waits and self.is_known(self.groups[index].nodes[0]):
                return index
        return None

    def merge(self, together: Sequence[Collection[str]]) -> None:
        """Make one group of all that share a set; a node that is not there is passed over."""
        home = {}
        for index, group in enumerate(self.groups):
            home.update(dict.fromkeys([*(name_of(node) for node in group.nodes), *group.aside], index))
        target = list(range(len(self.groups)))

        def find(index: int) -> int:
            while target[index] != index:
                index = target[index]
            return index

        for names in together:
            roots = sorted({find(home[self.labels.get(name, name)]) for name in names if self.labels.get(name) in home})
            for root in roots[1:]:
                target[root] = roots[0]
        for index, group in enumerate(self.groups):
            root = find(index)
            if root != index:
                self.groups[root].nodes += group.nodes
                self.groups[root].aside += group.aside
                group.nodes, group.aside = [], []
        self._index_readers()

    def _index_readers(self) -> None:
        self._readers = {}
        for index, group in enumerate(self.groups):
            for node in group.nodes:
                self._maker.update(dict.fromkeys(filter(None, node.output), index))
        for index, group in enumerate(self.groups):
            for name in self.reads(group):
                self._readers.setdefault(name, set()).add(index)

    def reads(self, group: Group) -> set[str]:
        """Stored tensors that a group takes from outside, constants too."""
        found: set[str] = set()
        for node in group.nodes:
            for name in filter(None, node.input):
                current = name
                while current in self._alias:
                    found.update(self._scales.get(current, ()))
                    current = self._alias[current]
                found.add(current)
        return found - {name for node in group.nodes for name in node.output}

    def writes(self, group: Group) -> set[str]:
        """Tensors that a group gives to other groups or as an output of the graph."""
        own = next(index for index, one in enumerate(self.groups) if one is group)
        given = {name for node in group.nodes for name in filter(None, node.output)}
        return {name for name in given if name in self._needed or self._readers.get(name, set()) - {own}}

    def is_known(self, node: onnx.NodeProto) -> bool:
        """Whether its operations can be counted: operator and shape are known."""
        if node.domain not in _DOMAINS or self.tensors.get(node.output[0], NOTHING).shape is None:
            return False
        count = count_macs if node.op_type in COMPUTING else count_operations
        return count(node, self.tensors) is not None


def name_of(node: onnx.NodeProto) -> str:
    """Its name; that of its first output where it has none."""
    return str(node.name or node.output[0])
