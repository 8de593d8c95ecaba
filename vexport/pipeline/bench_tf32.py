"""What FP32 means on a GPU: since Ampere, libraries may round the factors of FP32 products to TF32 (10 bits of 23).

PyTorch allows it in convolutions, ONNX Runtime and TensorRT in all layers. The published latencies were measured so:
those of TensorRT in FP32 are below what an A100 can do in true FP32.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from vexport.pipeline.bench_matrix import Cell

OVERRIDE = "NVIDIA_TF32_OVERRIDE"  # 0 forbids TF32 to all of NVIDIA's libraries, whatever they are told
Allowed = Literal["everywhere", "convolutions", "matrix products", "nowhere"]


def tf32_allowed(cell: Cell, facts: Mapping[str, Any]) -> Allowed | None:
    """Where an FP32 cell on a GPU may round to TF32; None for all other cells.

    Args:
        cell: As measured.
        facts: What its runner says of itself.
    """
    if not cell.on_gpu or cell.precision != "fp32":
        return None
    if os.environ.get(OVERRIDE) == "0":
        return "nowhere"
    if cell.made is not None and cell.made.tf32 is not None:
        return "everywhere" if cell.made.tf32 else "nowhere"
    told = (facts.get("runner") or {}).get("tf32")
    if told is not None:  # PyTorch's, read back
        convolutions, products = bool(told["convolutions"]), bool(told["matmuls"])
        if convolutions and products:
            return "everywhere"
        return "convolutions" if convolutions else "matrix products" if products else "nowhere"
    if cell.backend.startswith("onnxruntime"):
        from vexport.run.ort_session import TF32_ALLOWED

        return "everywhere" if TF32_ALLOWED else "nowhere"
    return None


def tf32_note(cell: Cell, facts: Mapping[str, Any]) -> str | None:
    """The same for a reader."""
    allowed = tf32_allowed(cell, facts)
    if allowed is None:
        return None
    if allowed == "nowhere":
        return f"{cell.backend}: FP32 throughout, no TF32"
    if allowed == "convolutions":
        return f"{cell.backend}: FP32 with TF32 in convolutions (PyTorch's default, as published), none in products"
    where = "layers" if allowed == "everywhere" else allowed
    return f"{cell.backend}: FP32 with TF32 allowed in all {where}"


@contextmanager
def tf32_as_asked(allowed: bool) -> Iterator[None]:
    """Forbid TF32 to the processes that are started in this block, where that is asked for."""
    if allowed:
        yield
        return
    before = os.environ.get(OVERRIDE)
    os.environ[OVERRIDE] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[OVERRIDE]
        else:
            os.environ[OVERRIDE] = before
