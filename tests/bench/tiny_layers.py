"""A network of three convolutions as a graph, and the peaks of a device that is easy to reckon with."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from tests.graph.graphs import Draft
from vexport.bench.peak import PeakRates, Rate

PEAKS = PeakRates("d", 1, {"fp32": Rate("a", (1e9,)), "int8": Rate("a", (1e9,))}, Rate("b", (1e9,)))


def tiny(*, channels: int = 16, names: bool = True) -> onnx.ModelProto:
    """conv - relu - conv + shortcut - relu - pool - conv - flatten, with real weights."""
    draft = Draft(["n", 3, 16, 16])
    a = draft.add("Relu", [draft.conv("x", "a", 3, channels, 3)], "a.relu")
    b = draft.add("Relu", [draft.add("Add", [draft.conv(a, "b", channels, channels), a], "b.add")], "b.relu")
    pool = draft.add("GlobalAveragePool", [b], "pool")
    out = draft.add("Flatten", [draft.conv(pool, "c", channels, 5)], "y")
    rng = np.random.default_rng(0)
    draft.weights = [
        numpy_helper.from_array(rng.standard_normal(tuple(one.dims)).astype("float32"), one.name)
        for one in draft.weights
    ]
    model = draft.model(out)
    if not names:
        for one in model.graph.node:
            one.name = ""
    return model
