"""Parameters, GMACs and depth of what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vexport.errors import VexportError
from vexport.model.variants import VARIANTS

_COUNTED: dict[tuple[str, tuple[int, int, int]], dict[str, Any]] = {}


def count_network(name: str, input_size: tuple[int, int, int]) -> dict[str, Any]:
    """Parameters, GMACs and depth of a variant or baseline, counted without memory.

    Depth is the number of layers with weights; of a variant as its authors count, where the depthwise convolutions of
    series activations are none.

    Args:
        name: Variant or baseline.
        input_size: C, H and W.
    """
    if (name, input_size) not in _COUNTED:
        import torch
        from torch import nn

        from vexport.model.baselines import create_baseline
        from vexport.model.build import build_network, count_cost
        from vexport.model.variants import make_spec

        with torch.device("meta"):
            is_variant = name in VARIANTS
            module = build_network(make_spec(name), form="deployed") if is_variant else create_baseline(name)
        layers = sum(isinstance(one, nn.Conv2d | nn.Linear) for one in module.modules())
        cost = count_cost(module, input_size)
        _COUNTED[name, input_size] = {
            "parameters": cost.params,
            "gmacs": cost.gmacs,
            "depth": len(VARIANTS[name].dims) + 1 if is_variant else layers,
        }
    return _COUNTED[name, input_size]


def count_file(path: Path, input_size: tuple[int, int, int], batch: int) -> dict[str, Any]:
    """The same of a graph; nothing of other files."""
    if path.suffix.lower() != ".onnx":
        return {}
    from vexport.graph.fused import count_fused
    from vexport.graph.inspect import count_parameters, read_graph

    model = read_graph(path)
    try:
        cost = count_fused(model, batch=batch, size=input_size[1:])
    except VexportError:
        return {"parameters": count_parameters(model)}
    return {
        "parameters": count_parameters(model),
        "gmacs": cost.macs / cost.batch / 1e9,
        "depth": sum(layer.macs > 0 for layer in cost.layers),
    }
