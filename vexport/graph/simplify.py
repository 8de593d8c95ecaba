"""Constant folding and dead-node removal by onnxsim, with its own check."""

from __future__ import annotations

import onnx

from vexport.graph.inspect import is_large


def simplify(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
    """Simplify a graph.

    Args:
        model: Not changed.

    Returns:
        The simplified graph and None; or the graph as it was and why, where onnxsim fails or finds that its result
        differs. The caller compares the result with the network all the same.
    """
    if is_large(model):
        return model, "onnxsim was skipped: the graph is above protobuf's 2 GB"
    import onnxsim

    try:
        simplified, same = onnxsim.simplify(model)
    except Exception as error:  # onnxsim raises bare RuntimeErrors and C++ errors of every kind
        return model, f"onnxsim failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    if not same:
        return model, "onnxsim's own check found a difference: the graph was left as it was"
    return simplified, None
