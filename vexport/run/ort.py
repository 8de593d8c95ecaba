"""ONNX Runtime: runs every graph that vexport writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnxruntime as ort

from vexport.deps import tool_versions
from vexport.errors import InputError
from vexport.run.runner import (
    CALL_EXCLUDES,
    CALL_INCLUDES,
    Array,
    require_images,
    require_logits,
    require_threads,
    times,
)
from vexport.workspace import require_file

CPU = "CPUExecutionProvider"
FATAL_ONLY = 4  # errors reach us as exceptions, and what is in use is asked for: the log would only repeat them
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


class OrtRunner:
    """An ONNX Runtime session on a classifier's graph.

    A graph with FP16 inputs or outputs is fed and read through float32 arrays; the cast is part of a call.

    Args:
        graph: Path of an .onnx file, or its bytes.
        providers: Execution providers, first choice first; each must really come into use.
        threads: Within one operator; None leaves ONNX Runtime's choice, one per core.
        name: For reports; None takes the file's stem.

    Raises:
        InputError: there is no such file, it is no graph that ONNX Runtime can load, not a classifier, or a provider
            is not in use.
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
        self._session: Any = _open(graph, providers, threads)
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        _require_providers(self.providers, providers)
        self.backend = f"onnxruntime {providers[0].removesuffix('ExecutionProvider')}"
        self.input_shape, self._input, self._dtype = _require_input(self._session, self.name)
        self._output = _require_output(self._session, self.name)
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, images: Array) -> Array:
        """Logits float32 (N, classes) of images float32 (N, C, H, W); float64 for a float64 graph.

        Raises:
            InputError: the images are not what the graph takes, it cannot compute on them, or the runner is closed.
        """
        if self._session is None:
            raise InputError(f"{self.name} is closed", hint="open it again")
        require_images(images, self.input_shape, ("float64", "float32") if self._dtype == "float64" else ("float32",))
        feed = {self._input: np.ascontiguousarray(images, dtype=self._dtype)}
        try:
            (logits,) = self._session.run([self._output], feed)
        except Exception as error:
            if not _is_theirs(error):
                raise
            raise _refused(error, f"ONNX Runtime cannot run {self.name} on {times(images.shape)}") from error
        if isinstance(logits, np.ndarray) and logits.dtype == np.float16:
            logits = logits.astype(np.float32)
        return require_logits(logits, len(images), self.name)

    def describe(self) -> dict[str, Any]:
        """Version, providers in use and threads, and what a call covers."""
        return {
            "name": self.name,
            "backend": self.backend,
            "input_shape": list(self.input_shape),
            "input_dtype": self._dtype,
            "providers": list(self.providers),
            "threads": self.threads or "one per core",
            "versions": tool_versions("onnxruntime"),
            "includes": list(CALL_INCLUDES),
            "excludes": list(CALL_EXCLUDES),
        }

    def close(self) -> None:
        """Let go of the session, its memory and its threads."""
        self._session = None

    def __enter__(self) -> OrtRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(graph: Path | str | bytes, providers: Sequence[str], threads: int | None) -> Any:
    if not providers:
        raise InputError("no execution provider was named", hint=f"{CPU} always works")
    missing = [name for name in providers if name not in ort.get_available_providers()]
    if missing:
        raise _not_in_use(missing, ort.get_available_providers())
    if isinstance(graph, bytes):
        what = "the graph"
        if not graph:
            raise InputError("the graph is empty", hint="give the bytes of an .onnx file")
    else:
        what = str(graph)
        require_file(Path(graph))
    ort.set_default_logger_severity(FATAL_ONLY)
    options = ort.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        session = ort.InferenceSession(source, options, providers=list(providers))
    except Exception as error:
        if not _is_theirs(error):
            raise
        raise _refused(error, f"{what} is not an ONNX graph that ONNX Runtime can load") from error
    session.disable_fallback()  # else a provider that fails at run time is silently replaced by the CPU
    return session


def _is_theirs(error: Exception) -> bool:
    """Whether ONNX Runtime raised it; they have no common base class but Exception."""
    return type(error).__module__.startswith("onnxruntime")


def _refused(error: Exception, message: str) -> InputError:
    details = [line.strip()[:300] for line in str(error).strip().splitlines()[:3]]
    hint = "copy it again, with its .data file where it has one, or write it anew with `vexport onnx`"
    return InputError(message, details=details, hint=hint)


def _require_providers(in_use: Sequence[str], wanted: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in in_use]:
        raise _not_in_use(missing, in_use)


def _not_in_use(missing: Sequence[str], there: Sequence[str]) -> InputError:
    return InputError(
        f"ONNX Runtime does not use {', '.join(missing)} here",
        details=[f"it has: {', '.join(there)}"],
        hint=f"install the provider's libraries and driver, or take {CPU}",
    )


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
