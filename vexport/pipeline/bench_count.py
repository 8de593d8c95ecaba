"""Parameters, GMACs and depth of what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vexport.errors import VexportError
from vexport.model.variants import VARIANTS

_COUNTED: dict[tuple[str, tuple[int, int, int]], dict[str, Any]] = {}


def count_network(name: str, input_size: tuple[int, int, int]) -> dict[str, Any]:
    """Parameters, GMACs and depth of a variant or baseline, counted without memory.

    Depth is the number of layers with weights on the longest path, as published depths count them; of a variant,
    where the depthwise convolutions of series activations are none.

    Args:
        name: Variant or baseline.
        input_size: C, H and W.
    """
    if (name, input_size) not in _COUNTED:
        import torch

        from vexport.model.baselines import create_baseline
        from vexport.model.build import build_network, count_cost
        from vexport.model.depth import longest_path
        from vexport.model.variants import make_spec

        with torch.device("meta"):
            is_variant = name in VARIANTS
            module = build_network(make_spec(name), form="deployed") if is_variant else create_baseline(name)
        cost = count_cost(module, input_size)
        _COUNTED[name, input_size] = {
            "parameters": cost.params,
            "gmacs": cost.gmacs,
            "depth": len(VARIANTS[name].dims) + 1 if is_variant else longest_path(module, input_size),
        }
    return _COUNTED[name, input_size]


def count_file(path: Path, input_size: tuple[int, int, int], batch: int) -> dict[str, Any]:
    """The same of a graph; nothing of other files.

    The depthwise convolutions of a network that its file calls one with series activations are such activations. In
    a file that does not say what it is, they count as layers, as they do in published depths of other networks.
    """
    if path.suffix.lower() != ".onnx":
        return {}
    from vexport.graph.depth import longest_path
    from vexport.graph.fused import count_fused
    from vexport.graph.inspect import count_parameters, metadata, read_graph

    model = read_graph(path)
    try:
        cost = count_fused(model, batch=batch, size=input_size[1:])
    except VexportError:
        return {"parameters": count_parameters(model)}
    return {
        "parameters": count_parameters(model),
        "gmacs": cost.macs / cost.batch / 1e9,
        "depth": longest_path(model, size=input_size[1:], depthwise=not _has_series(metadata(model))),
    }


def _has_series(said: Mapping[str, str]) -> bool:
    """Whether a graph's network, by its metadata, has no depthwise convolutions but those of series activations."""
    name = said.get("vexport.model")
    if name is None:
        return False
    if name in VARIANTS:
        return True
    from vexport.model.ablation import OTHERS

    return name in OTHERS
