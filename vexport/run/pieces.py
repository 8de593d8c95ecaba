"""How far two graphs are apart, piece by piece, by a graph that measures it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from vexport.run.runner import Array

if TYPE_CHECKING:
    import onnx


def measure_pieces(graph: onnx.ModelProto, names: Sequence[str], batches: Sequence[Array]) -> dict[str, float]:
    """Largest difference of each tensor, relative to its largest magnitude, over all images.

    Args:
        graph: By `vexport.graph.segments.compare_pieces`.
        names: The tensors that it compares.
        batches: Images float32 (N, C, H, W).

    Returns:
        The error by tensor; infinite where one of the two is not finite.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    found = np.array([session.run(None, {source: batch}) for batch in batches], dtype=np.float64)
    errors = {}
    for name, (error, size) in zip(names, found.max(axis=0).reshape(-1, 2), strict=True):
        if not (np.isfinite(error) and np.isfinite(size)):
            errors[name] = math.inf
        else:
            errors[name] = float(error / size) if size else (math.inf if error else 0.0)
    return errors
