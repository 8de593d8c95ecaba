"""ONNX Runtime: runs every graph that vexport writes, on the CPU or wholly on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vexport.deps import tool_versions
from vexport.errors import InputError
from vexport.run.ort_session import (
    CPU,
    CUDA,
    FATAL_ONLY,
    TENSORRT,
    convolution_types,
    gpu_failure,
    is_theirs,
    open_session,
    refused,
)
from vexport.run.runner import (
    CALL_EXCLUDES,
    CALL_INCLUDES,
    Array,
    require_images,
    require_logits,
    require_threads,
    times,
)

__all__ = ["CPU", "CUDA", "FATAL_ONLY", "TENSORRT", "OrtRunner"]

DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


class OrtRunner:
    """An ONNX Runtime session on a classifier's graph.

    A graph with FP16 inputs or outputs is fed and read through float32 arrays; the cast is part of a call.

    Args:
        graph: Path of an .onnx file, or its bytes.
        providers: Execution providers, first choice first; each must really come into use. Without the CPU's among
            them, no node may be left to the CPU.
        threads: Within one operator; None leaves ONNX Runtime's choice, one per core.
        name: For reports; None takes the file's stem.

    Raises:
        InputError: there is no such file, it is no graph that ONNX Runtime can load, not a classifier, a provider
            is not in use, or it leaves nodes to the CPU.
        EngineError: the GPU fails.
    """

    def __init__(
        self,
        graph: Path | str | bytes,
        *,
        providers: Sequence[str] = (CPU,),
        threads: int | None = None,
        name: str | None = None,
    ) -> None:
        require_threads(threads)
        self.name = name or ("graph" if isinstance(graph, bytes) else Path(graph).stem)
        self.threads = threads
        self._file = None if isinstance(graph, bytes) else Path(graph)
        self._session: Any
        # How many nodes each provider computes, where the CPU is left out.
        self._session, self.nodes = open_session(graph, providers, threads)
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self.backend = f"onnxruntime {providers[0].removesuffix('ExecutionProvider')}"
        self.input_shape, self._input, self._dtype = _require_input(self._session, self.name)
        self._output = _require_output(self._session, self.name)
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, images: Array) -> Array:
        """Logits float32 (N, classes) of images float32 (N, C, H, W); float64 for a float64 graph.

        Raises:
            InputError: the images are not what the graph takes, it cannot compute on them, or the runner is closed.
            EngineError: the GPU fails.
        """
        if self._session is None:
            raise InputError(f"{self.name} is closed", hint="open it again")
        require_images(images, self.input_shape, ("float64", "float32") if self._dtype == "float64" else ("float32",))
        feed = {self._input: np.ascontiguousarray(images, dtype=self._dtype)}
        try:
            (logits,) = self._session.run([self._output], feed)
        except Exception as error:
            if not is_theirs(error):
                raise
            raise gpu_failure(error, self.name, self.providers) or refused(
                error, f"ONNX Runtime cannot run {self.name} on {times(images.shape)}"
            ) from error
        if isinstance(logits, np.ndarray) and logits.dtype == np.float16:
            logits = logits.astype(np.float32)
        return require_logits(logits, len(images), self.name)

    def describe(self) -> dict[str, Any]:
        """Version, providers in use and threads, what computes in INT8, and what a call covers."""
        counted, names = self._convolutions() or (None, None)
        return {
            "name": self.name,
            "backend": self.backend,
            "input_shape": list(self.input_shape),
            "input_dtype": self._dtype,
            "providers": list(self.providers),
            "nodes_by_provider": self.nodes or None,
            # Of a Q/DQ graph on the CPU: how many really compute in INT8, and which nodes do.
            "convolutions": counted,
            "int8_layers": names,
            "threads": self.threads or "one per core",
            "versions": tool_versions("onnxruntime"),
            "includes": list(CALL_INCLUDES),
            "excludes": list(CALL_EXCLUDES),
        }

    def _convolutions(self) -> tuple[dict[str, int], list[str]] | None:
        if self._file is None or self.providers[0] != CPU or not self._file.is_file():
            return None
        return convolution_types(self._file)

    def close(self) -> None:
        """Let go of the session, its memory and its threads."""
        self._session = None

    def __enter__(self) -> OrtRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _require_input(session: Any, name: str) -> tuple[tuple[int | None, ...], str, str]:
    """Shape, name and dtype of the one input of images."""
    inputs = session.get_inputs()
    found = ", ".join(f"{value.name} {value.type} {value.shape}" for value in inputs) or "nothing"
    if len(inputs) != 1 or inputs[0].type not in DTYPES or len(inputs[0].shape) != 4:
        raise InputError(
            f"{name} does not take one batch of images",
            details=[f"it takes: {found}"],
            hint="only classifiers with one floating-point input (images, channels, height, width) can be run",
        )
    shape = tuple(side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape)
    return shape, inputs[0].name, DTYPES[inputs[0].type]


def _require_output(session: Any, name: str) -> str:
    outputs = session.get_outputs()
    # A graph without shape inference has an output of unknown rank: then the first answer tells.
    if len(outputs) != 1 or outputs[0].type not in DTYPES or len(outputs[0].shape or (1, 1)) != 2:
        found = ", ".join(f"{value.name} {value.type} {value.shape}" for value in outputs) or "nothing"
        raise InputError(
            f"{name} does not answer with one row of class scores per image",
            details=[f"it answers: {found}"],
            hint="only classifiers with one output (images, classes) can be run",
        )
    return str(outputs[0].name)
