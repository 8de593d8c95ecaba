"""The ranges that quantisation-aware training found, as a graph carries them: by convolution, in its metadata."""

from __future__ import annotations

import json
import math
from typing import Any

import onnx

from vexport.errors import InputError
from vexport.graph.inspect import metadata
from vexport.graph.quantize import LISTED, conv_nodes

ACTIVATION_RANGES = "vexport.activation_ranges"


def trained_ranges(model: onnx.ModelProto) -> dict[str, float] | None:
    """The ranges that a graph was trained for.

    Args:
        model: An FP32 graph whose convolutions are named as the checkpoint's; weights are initializers.

    Returns:
        Largest magnitude that INT8 shall hold, of each tensor that a convolution takes, as `quantize` wants them; None
        where the graph was not trained for INT8.

    Raises:
        InputError: they are damaged, or are not those of this graph's convolutions.
    """
    text = metadata(model).get(ACTIVATION_RANGES)
    if text is None:
        return None
    told = _read(text)
    convs = set(conv_nodes(model))
    wrong = [f"{name}: there is no such convolution" for name in told if name not in convs]
    found: dict[str, float] = {}
    for node in model.graph.node:
        if node.name not in convs:
            continue
        top = told.get(node.name)
        tensor = node.input[0]
        if isinstance(top, bool) or not isinstance(top, (int, float)) or not 0 < top < math.inf:
            wrong.append(f"{node.name}: {'missing' if top is None else top}")
        elif found.setdefault(tensor, float(top)) != top:
            wrong.append(f"{node.name}: {top:g}, and {found[tensor]:g} for the same tensor {tensor}")
    if wrong:
        raise InputError(
            f"{len(wrong)} of the ranges that this graph was trained for do not fit it",
            details=wrong[:LISTED],
            hint="export it again from the checkpoint of the training",
        )
    return found


def _read(text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise InputError(
            f"{ACTIVATION_RANGES} in the graph's metadata is damaged",
            hint="export it again from the checkpoint of the training",
        )
    return told
