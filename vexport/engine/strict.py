"""What holds a builder to the graph's types: needed where the network is weakly typed, and for TF32 everywhere."""

from __future__ import annotations

from typing import Any

from vexport.engine.runtime import TensorRT

# Layers that compute nothing: their types are what they were made for.
_UNCONSTRAINED = frozenset({"CONSTANT", "SHAPE", "CAST", "IDENTITY"})


def precision_flags(runtime: TensorRT, precision: str) -> dict[str, Any]:
    """What a weakly typed network needs: the flags that allow the graph's types, and that they be obeyed."""
    if runtime.strongly_typed or precision == "fp32":
        return {}
    # Q/DQ graphs have FP16 or FP32 layers in between: INT8 alone would leave those in FP32.
    return {"fp16": True, "int8": precision == "int8", "precision_constraints": "obey"}


def constrain_types(runtime: TensorRT, network: Any) -> None:
    """Weakly typed networks: hold every computing layer to the type that the graph gives it."""
    trt = runtime.load()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kinds = {layer.get_output(at).dtype for at in range(layer.num_outputs)}
        kind = next(iter(kinds)) if len(kinds) == 1 else None
        if kind in (trt.float16, trt.float32) and str(layer.type).rpartition(".")[2] not in _UNCONSTRAINED:
            layer.precision = kind


def allow_tf32(runtime: TensorRT, config: Any, allowed: bool) -> None:
    """Whether FP32 may round to TF32: on by default in every TensorRT, and FP32 that keeps 10 bits is not FP32."""
    trt = runtime.load()
    if hasattr(trt.BuilderFlag, "TF32"):
        (config.set_flag if allowed else config.clear_flag)(trt.BuilderFlag.TF32)
