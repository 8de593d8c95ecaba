"""A graph in memory, opened in ONNX Runtime on the CPU to look at tensors inside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from vexport.errors import InputError
from vexport.graph.inspect import is_large
from vexport.graph.write import write_graph
from vexport.run.ort import CPU, FATAL_ONLY


@contextmanager
def open_probe(
    model: onnx.ModelProto, threads: int | None, *, named: str, hint: str, as_written: bool = False
) -> Iterator[Any]:
    """An ONNX Runtime session on a graph that is in no file.

    Args:
        model: The graph; it may be let go once the session is open.
        threads: Of ONNX Runtime; None leaves its choice.
        named: What it is called in messages.
        hint: For whoever gave another graph.
        as_written: Compute Q/DQ nodes one by one in FP32: INT8 kernels of some CPUs saturate.

    Raises:
        InputError: ONNX Runtime cannot load it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    if as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        graph: str | bytes = str(Path(folder) / "graph.onnx")
        if is_large(model):
            write_graph(model, Path(str(graph)))
        else:
            graph = model.SerializeToString()
        with mapped_errors(f"ONNX Runtime cannot load {named}", hint):
            session = ort.InferenceSession(graph, options, providers=[CPU])
        del model, graph
        yield session


@contextmanager
def mapped_errors(message: str, hint: str) -> Iterator[None]:
    """Turn ONNX Runtime's errors into an InputError; they have no common base class but Exception."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise InputError(message, details=str(error).splitlines()[:1], hint=hint) from error
