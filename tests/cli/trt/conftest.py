"""What the tests of `vexport trt` share: a graph, and its engine for an A100, which any machine can build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Invoke

Refused = Callable[..., str]
GRAPH = Path("vexport-out/ckpt.onnx")
ENGINE = Path("vexport-out/ckpt.fp16.sm80.engine")
A100 = ("--target", "a100")


@pytest.fixture(autouse=True)
def _tensorrt() -> None:
    """Skip where nothing can build engines."""
    pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT for RTX for this platform")


@pytest.fixture
def graph(invoke: Invoke, ckpt: Path) -> Path:
    """The small network's FP32 graph, in the workspace."""
    assert invoke("onnx", ckpt).exit_code == 0
    return GRAPH


@pytest.fixture
def engine(invoke: Invoke, graph: Path) -> Path:
    """Its FP16 engine for an A100."""
    result = invoke("trt", "--fp16", *A100)
    assert result.exit_code == 0, result.output
    return ENGINE
