"""OpenVINO: graphs on a CPU, in the precision asked for and read back."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType, TracebackType
from typing import Any, Literal

import numpy as np

from vexport.deps import needs, tool_versions
from vexport.errors import InputError, MissingDependencyError, PrecisionError
from vexport.graph.inspect import read_graph
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

OvPrecision = Literal["fp32", "bf16"]
# Precision to what OpenVINO calls it, and the capability that a CPU must report for it.
PRECISIONS = MappingProxyType({"fp32": ("f32", "FP32"), "bf16": ("bf16", "BF16")})
_TYPES = MappingProxyType({"f32": "float32", "f16": "float16", "f64": "float64"})
# What a convolution computes on where it computes in INT8; unsigned where a Relu is before it.
INT8_TYPES = ("i8", "u8")
DEVICE = "CPU"
_LOCATIONS = ("Exception from", "Check ", "Summary:")  # how lines begin that only tell where in its source it failed
_TELEMETRY = "openvino_telemetry"


class OpenVinoRunner:
    """A graph compiled by OpenVINO for the CPU, for one call at a time (its LATENCY hint).

    An explicit Q/DQ graph computes its convolutions in INT8, whatever the precision, which is then that of the rest.

    Args:
        graph: Path of an .onnx file.
        precision: Of what the graph leaves in floating point. Without being told, OpenVINO takes BF16 for an FP32 graph
            wherever the CPU has it.
        threads: To compute with; None leaves OpenVINO's choice.
        name: For reports; None takes the file's stem.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        InputError: there is no such file, it is no graph that OpenVINO can compile, not a classifier, or the CPU has
            no instructions for the precision.
        PrecisionError: OpenVINO computes in another precision than asked for.
    """

    def __init__(
        self, graph: Path, *, precision: OvPrecision = "fp32", threads: int | None = None, name: str | None = None
    ) -> None:
        require_threads(threads)
        require_file(Path(graph))
        self.name = name or Path(graph).stem
        self.precision: OvPrecision = precision
        ov = load_openvino()
        if reason := why_not_precision(precision):
            raise InputError(reason, hint="take the backend openvino, which computes in FP32")
        read_graph(Path(graph), with_weights=False)  # else OpenVINO tries it as every format that it knows, aloud
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": PRECISIONS[precision][0]}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        core = ov.Core()
        with _mapped_errors(f"{graph} is not an ONNX graph that OpenVINO can compile"):
            model = core.read_model(str(graph))
            self.input_shape, self._dtype = _require_input(model, self.name)
            _require_output(model, self.name)
            self._compiled: Any = core.compile_model(model, DEVICE, options)
        self.properties = _read_back(self._compiled)
        self.convolutions, self.int8_layers = _layers(self._compiled)
        self._require_precision()
        self._request: Any = self._compiled.create_infer_request()
        self.backend = f"openvino {DEVICE} {' + '.join(self._computes_in())}"

    def _computes_in(self) -> list[str]:
        """`INT8` where convolutions are quantised, and the precision of the rest."""
        in_int8 = sum(self.convolutions.get(kind, 0) for kind in INT8_TYPES)
        rest = [self.precision.upper()]
        return ["INT8", *rest] if in_int8 else rest

    def _require_precision(self) -> None:
        found = self.properties["inference_precision"]
        wanted = PRECISIONS[self.precision][0]
        strays = {kind: count for kind, count in self.convolutions.items() if kind not in (wanted, *INT8_TYPES)}
        if found != wanted or strays:
            counted = ", ".join(f"{count} in {kind}" for kind, count in self.convolutions.items())
            raise PrecisionError(
                f"{self.name}: OpenVINO computes in {found}, not in {wanted}",
                details=[f"convolutions: {counted}"] if counted else [],
                hint="take the backend openvino, which computes in FP32",
            )

    def __call__(self, images: Array) -> Array:
        """Logits float32 (N, classes) of images float32 (N, C, H, W); float64 for a float64 graph.

        Raises:
            InputError: the images are not what the graph takes, it cannot compute on them, or the runner is closed.
        """
        if self._request is None:
            raise InputError(f"{self.name} is closed", hint="open it again")
        require_images(images, self.input_shape, ("float64", "float32") if self._dtype == "float64" else ("float32",))
        feed = np.ascontiguousarray(images, dtype=self._dtype)
        with _mapped_errors(f"OpenVINO cannot run {self.name} on {times(images.shape)}"):
            # Shared memory saves a copy; the answer is copied, since the next call writes over it.
            found = self._request.infer({0: feed}, share_inputs=True, share_outputs=True)
            logits = np.array(found[0])
        if logits.dtype == np.float16:
            logits = logits.astype(np.float32)
        return require_logits(logits, len(images), self.name)

    def describe(self) -> dict[str, Any]:
        """Version, precision and threads as read back, what the convolutions compute on, and what a call covers."""
        return {
            "name": self.name,
            "backend": self.backend,
            "input_shape": list(self.input_shape),
            "input_dtype": self._dtype,
            **self.properties,
            # By the type that OpenVINO's compiled graph names; i8 and u8 are INT8.
            "convolutions": dict(self.convolutions),
            "int8_layers": list(self.int8_layers),
            "versions": tool_versions("openvino"),
            "includes": list(CALL_INCLUDES),
            "excludes": [*CALL_EXCLUDES, "compilation"],
        }

    def close(self) -> None:
        """Let go of the compiled graph, its memory and its threads."""
        self._request = self._compiled = None

    def __enter__(self) -> OpenVinoRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry.

    OpenVINO reports each import to Google Analytics, in the background and without having asked, unless its package
    for that is missing, which it allows for. A benchmark sends nothing and has no background of its own.

    Raises:
        MissingDependencyError: it is not installed.
    """
    absent = object()
    before = sys.modules.get(_TELEMETRY, absent)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # an import of it fails now
    try:
        with needs("openvino"):
            import openvino
    finally:
        if before is absent:
            del sys.modules[_TELEMETRY]
        else:
            sys.modules[_TELEMETRY] = before  # type: ignore[assignment]
    found: ModuleType = openvino
    return found


def why_not_precision(precision: OvPrecision) -> str | None:
    """The reason why OpenVINO cannot compute in a precision here; None where it can."""
    try:
        core = load_openvino().Core()
    except MissingDependencyError as error:
        return error.message
    there = core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES") if DEVICE in core.available_devices else []
    if PRECISIONS[precision][1] in there:
        return None
    return f"this CPU has no instructions for {PRECISIONS[precision][1]} that OpenVINO uses"


@contextmanager
def _mapped_errors(message: str) -> Iterator[None]:
    """OpenVINO raises RuntimeError for everything, with a C++ location in the first lines."""
    try:
        yield
    except InputError:
        raise
    except RuntimeError as error:
        lines = [line.strip()[:300] for line in str(error).splitlines() if line.strip()]
        said = [line for line in lines if not line.startswith(_LOCATIONS)] or lines
        hint = "see whether the backend onnxruntime runs it; else write it anew with `vexport onnx`"
        raise InputError(message, details=said[:4], hint=hint) from error


def _require_input(model: Any, name: str) -> tuple[tuple[int | None, ...], str]:
    """Shape and dtype of the one input of images."""
    found = ", ".join(_port(port) for port in model.inputs) or "nothing"
    shape = model.inputs[0].get_partial_shape() if len(model.inputs) == 1 else None
    if shape is None or shape.rank.is_dynamic or len(shape) != 4 or _type(model.inputs[0]) not in _TYPES:
        raise InputError(
            f"{name} does not take one batch of images",
            details=[f"it takes: {found}"],
            hint="only classifiers with one floating-point input (images, channels, height, width) can be run",
        )
    sides = tuple(None if side.is_dynamic else int(side.get_length()) for side in shape)
    return sides, _TYPES[_type(model.inputs[0])]


def _require_output(model: Any, name: str) -> None:
    shapes = [port.get_partial_shape() for port in model.outputs]
    # An output of unknown rank is told by the first answer.
    if len(shapes) != 1 or (shapes[0].rank.is_static and len(shapes[0]) != 2):
        raise InputError(
            f"{name} does not answer with one row of class scores per image",
            details=[f"it answers: {', '.join(_port(port) for port in model.outputs) or 'nothing'}"],
            hint="only classifiers with one output (images, classes) can be run",
        )


def _type(port: Any) -> str:
    return str(port.get_element_type().get_type_name())


def _port(port: Any) -> str:
    return f"{_type(port)} {port.get_partial_shape()}"


def _read_back(compiled: Any) -> dict[str, Any]:
    """What the compiled graph says of itself."""
    return {
        "inference_precision": str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()),
        "performance_hint": str(compiled.get_property("PERFORMANCE_HINT")).rpartition(".")[2],
        "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
        "streams": int(compiled.get_property("NUM_STREAMS")),
        "pinned": bool(compiled.get_property("ENABLE_CPU_PINNING")),
        "devices": [str(device) for device in compiled.get_property("EXECUTION_DEVICES")],
    }


def _layers(compiled: Any) -> tuple[dict[str, int], list[str]]:
    """How many convolutions compute on which type, as OpenVINO's compiled graph names it.

    Returns:
        Counts by type, and the names of all layers that multiply in INT8, as the graph has them.
    """
    found: Counter[str] = Counter()
    in_int8: list[str] = []
    for node in compiled.get_runtime_model().get_ops():
        told = node.get_rt_info()
        layer, precision = (str(told[key].astype(str)) for key in ("layerType", "runtimePrecision"))
        if "Convolution" in layer:
            found[precision] += 1
        if precision in INT8_TYPES and any(kind in layer for kind in ("Convolution", "FullyConnected", "MatMul")):
            in_int8 += str(told["originalLayersNames"].astype(str)).split(",")
    return dict(found.most_common()), in_int8
