"""What is in a graph: operators, parameters, bytes, metadata."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from vexport.errors import InputError

PROTOBUF_LIMIT_BYTES = 2**31 - 1
# Room for everything but the weights: nodes, names, metadata.
_HEADROOM_BYTES = 2**20


def read_graph(path: Path, *, with_weights: bool = True) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        InputError: there is none at `path`, or it is damaged.
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}", hint="give the path of an .onnx file")
    try:
        model = onnx.load(path, load_external_data=with_weights)
        if not model.graph.node:
            raise ValueError("it has no nodes")
    except (DecodeError, ValueError, OSError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path} is not a whole ONNX graph", details=[str(error)], hint="export it again") from error
    return model


def count_operators(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each operator, most frequent first."""
    return dict(Counter(node.op_type for node in model.graph.node).most_common())


def count_parameters(model: onnx.ModelProto) -> int:
    """Numbers in the initialisers."""
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the initialisers."""
    sizes = {
        dtype: onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize
        for dtype in {tensor.data_type for tensor in model.graph.initializer}
    }
    return sum(math.prod(tensor.dims) * sizes[tensor.data_type] for tensor in model.graph.initializer)


def is_large(model: onnx.ModelProto) -> bool:
    """Whether the graph is too large for one protobuf file."""
    return weight_bytes(model) > PROTOBUF_LIMIT_BYTES - _HEADROOM_BYTES


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The graph's metadata_props."""
    return {entry.key: entry.value for entry in model.metadata_props}
