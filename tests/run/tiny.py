"""A network of one convolution, as a module and as a graph written by hand, and images for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

SIZE = (3, 8, 8)


def tiny_module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def tiny_graph(
    module: nn.Module | None = None,
    *,
    shape: tuple[Any, ...] = ("N", 3, 8, 8),
    dtype: int = TensorProto.FLOAT,
    nodes: list[Any] | None = None,
    output: tuple[Any, ...] | None = ("N", 5),
) -> onnx.ModelProto:
    """The same network as `tiny_module`, as a graph written by hand."""
    conv = (module or tiny_module())[0]  # type: ignore[index]
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    weights = [
        numpy_helper.from_array(getattr(conv, name).detach().numpy().astype(kind), name) for name in ("weight", "bias")
    ]
    chain = nodes or [
        helper.make_node("Conv", ["x", "weight", "bias"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["y"]),
    ]
    graph = helper.make_graph(
        chain,
        "tiny",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, output)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"vexport.model": "tiny"})
    return model


def images(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)
