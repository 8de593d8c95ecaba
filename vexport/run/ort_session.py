"""ONNX Runtime sessions that use the providers asked for and no other, or say why they cannot."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from vexport.errors import EngineError, InputError, VexportError
from vexport.graph.inspect import read_graph
from vexport.workspace import require_file

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
TF32_ALLOWED = True  # in FP32 graphs on a GPU: the default of both providers
# What TensorRT's builder is told where a graph has such types; the rest stays as it is.
_TRT_FLAGS: Mapping[str, str] = MappingProxyType(
    {"fp16": "trt_fp16_enable", "bf16": "trt_bf16_enable", "int8": "trt_int8_enable"}
)
_TYPE_NAMES: Mapping[int, str] = MappingProxyType({TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"})
FATAL_ONLY = 4  # errors reach us as exceptions, and what is in use is asked for: the log would only repeat them
NO_CPU = "session.disable_cpu_ep_fallback"
LISTED = 8
# Operators that multiply 8-bit numbers, and which of their inputs are the weights.
_WEIGHT_OF: Mapping[str, int] = MappingProxyType(
    {"QLinearConv": 3, "ConvInteger": 1, "QLinearMatMul": 3, "QGemm": 3, "MatMulInteger": 1, "MatMulIntegerToFloat": 1}
)
_NAMED_ANEW = re.compile(r"(_token_\d+)+$")
_GPU_FAILED = re.compile(r"(CUDA|CUDNN|CUBLAS) (error|failure)", re.IGNORECASE)


def open_session(
    graph: Path | str | bytes, providers: Sequence[str], threads: int | None
) -> tuple[Any, dict[str, int]]:
    """Start a session on which every provider asked for is in use.

    Args:
        graph: Path of an .onnx file, or its bytes.
        providers: First choice first. Without the CPU's among them, no node may be left to the CPU.
        threads: Within one operator; None leaves ONNX Runtime's choice.

    Returns:
        The session, and how many nodes each provider computes; empty where the CPU may take part, or where this
        ONNX Runtime does not tell.

    Raises:
        InputError: there is no such file, it is no graph that ONNX Runtime can load, a provider is not in use, or it
            leaves nodes to the CPU.
        EngineError: the GPU fails.
    """
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
    if CPU not in providers:
        # Else what the provider cannot compute, or all where it does not load, goes to the CPU without a word.
        options.add_session_config_entry(NO_CPU, "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        _load_cuda_libraries()
    source = graph if isinstance(graph, bytes) else str(graph)
    asked = provider_options(providers, graph_types(graph) if TENSORRT in providers else frozenset())
    try:
        session = _start(source, options, asked)
    except Exception as error:
        if not is_theirs(error):
            raise
        if "fallback to CPU EP has been explicitly disabled" in str(error):
            raise _left_to_cpu(source, options, asked, what) from error
        kind = "" if CPU in providers else f" with {providers[0]}"
        raise gpu_failure(error, what, providers) or refused(
            error, f"{what} is not an ONNX graph that ONNX Runtime can load{kind}"
        ) from error
    session.disable_fallback()  # else a provider that fails at run time is silently replaced by the CPU
    in_use = session.get_providers()
    if missing := [name for name in providers if name not in in_use]:
        raise _not_in_use(missing, in_use)
    return session, {} if CPU in providers else {name: len(nodes) for name, nodes in _assigned(session).items()}


def provider_options(providers: Sequence[str], types: Collection[str]) -> list[tuple[str, dict[str, str]]]:
    """Execution providers with the options that they need to compute in a graph's own types.

    What FP32 means is said here too and not left to a default: a GPU may round factors to TF32 (`TF32_ALLOWED`).
    TensorRT takes 16-bit and 8-bit kernels only where its builder is told to, whatever the graph's types are.

    Args:
        providers: First choice first.
        types: From `graph_types`.
    """
    tensorrt = {option: "1" for kind, option in _TRT_FLAGS.items() if kind in types}
    own = {CUDA: {"use_tf32": "1"}, TENSORRT: tensorrt}
    return [(name, own.get(name, {})) for name in providers]


def graph_types(graph: Path | str | bytes) -> frozenset[str]:
    """Which of `fp16`, `bf16` and `int8` a graph has: by its weights, inputs and outputs, and Q/DQ nodes.

    Args:
        graph: Path of an .onnx file, or its bytes. What is no graph has none: the session says what is wrong.
    """
    try:
        model = (
            onnx.load_from_string(graph) if isinstance(graph, bytes) else read_graph(Path(graph), with_weights=False)
        )
    except (InputError, DecodeError):
        return frozenset()
    values = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    kinds = (_TYPE_NAMES.get(kind) for kind in (*values, *(tensor.data_type for tensor in model.graph.initializer)))
    quantised = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    return frozenset(kind for kind in kinds if kind) | ({"int8"} if quantised else frozenset())


def _start(source: bytes | str, options: Any, asked: Sequence[tuple[str, dict[str, str]]]) -> Any:
    providers = [name for name, _ in asked]
    try:
        return ort.InferenceSession(source, options, providers=list(asked), enable_fallback=0)
    except RuntimeError as error:  # of ONNX Runtime's Python side: the provider's libraries are not there
        if is_theirs(error) or CPU in providers:
            raise
        raise _not_in_use(providers, (CPU,), str(error)) from error


def _left_to_cpu(
    source: bytes | str, options: Any, asked: Sequence[tuple[str, dict[str, str]]], what: str
) -> VexportError:
    """Why a session that must not use the CPU does not start: the provider does not load, or leaves nodes out."""
    options.add_session_config_entry(NO_CPU, "0")
    providers = [name for name, _ in asked]
    session = _start(source, options, asked)
    if missing := [name for name in providers if name not in session.get_providers()]:
        return _not_in_use(missing, session.get_providers())
    nodes = _assigned(session).get(CPU, [])
    more = f" ... ({len(nodes)} in all)" if len(nodes) > LISTED else ""
    return InputError(
        f"{providers[0]} leaves nodes of {what} to the CPU",
        details=[f"{', '.join(nodes[:LISTED])}{more}"] if nodes else [],
        hint="write the graph with a fixed batch, so that no shapes are computed, or take another backend",
    )


def _assigned(session: Any) -> dict[str, list[str]]:
    """Nodes by the provider that computes them, as `name (operator)`; empty where this ONNX Runtime does not tell."""
    found: dict[str, list[str]] = {}
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return found
    for part in session.get_provider_graph_assignment_info():
        nodes = [f"{node.name or 'unnamed'} ({node.op_type})" for node in part.get_nodes()]
        found.setdefault(part.ep_name, []).extend(nodes)
    return found


def convolution_types(graph: Path) -> tuple[dict[str, int], list[str]] | None:
    """How many convolutions of a Q/DQ graph ONNX Runtime's CPU provider computes in INT8, and how many in FP32.

    A convolution becomes an INT8 one only where its output is quantised too, with nothing between. Where a Relu comes
    first, ONNX Runtime computes it in FP32, on weights and images that went through INT8. What it does stands in the
    graph as its optimisers leave it.

    Args:
        graph: An .onnx file that opens.

    Returns:
        Counts for `int8` and `fp32`, and the names of all nodes that compute in INT8, as the graph has them; None
        where it has no Q/DQ nodes.
    """
    before = read_graph(graph, with_weights=False).graph.node
    if not any(node.op_type == "DequantizeLinear" for node in before):
        return None
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(str(graph), options, providers=[CPU])
        nodes = read_graph(Path(folder) / "optimised.onnx", with_weights=False).graph.node
    in_int8 = sum(node.op_type in ("QLinearConv", "ConvInteger") for node in nodes)
    counted = {"int8": in_int8, "fp32": sum("Conv" in node.op_type for node in nodes) - in_int8}
    return counted, _names_before(before, [node for node in nodes if node.op_type in _WEIGHT_OF])


def _names_before(before: Sequence[onnx.NodeProto], after: Sequence[onnx.NodeProto]) -> list[str]:
    """What nodes were called before optimisers named them anew: by their own name, or by the weights that they read."""
    stored = {node.output[0]: node.input[0] for node in before if node.op_type == "DequantizeLinear"}
    readers: dict[str, list[str]] = {}
    for node in before:
        for value in node.input:
            readers.setdefault(stored.get(value, value), []).append(node.name or node.output[0])
    names = {node.name for node in before if node.name}
    found: list[str] = []
    for node in after:
        own = _NAMED_ANEW.sub("", node.name)
        weight = node.input[_WEIGHT_OF[node.op_type]]
        found += [own] if own in names else readers.get(weight, [])
    return sorted(set(found))


def _load_cuda_libraries() -> None:
    """Load the CUDA and cuDNN that PyTorch's packages bring; where they are missing, the session says so."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(AttributeError, OSError):
        ort.preload_dlls()  # since 1.21


def is_theirs(error: Exception) -> bool:
    """Whether ONNX Runtime raised it; they have no common base class but Exception."""
    return type(error).__module__.startswith("onnxruntime")


def gpu_failure(error: Exception, name: str, providers: Sequence[str]) -> EngineError | None:
    """The error for a GPU that failed; None where ONNX Runtime tells of something else."""
    said = str(error)
    if providers[0] == CPU or not _GPU_FAILED.search(said):
        return None
    memory = "out of memory" in said.lower()
    return EngineError(
        f"the GPU {'has no memory left for' if memory else 'failed while it ran'} {name}",
        details=[said.strip().splitlines()[0][:300]],
        hint="take a smaller batch" if memory else "see with `nvidia-smi` whether it is there, then run again",
    )


def refused(error: Exception, message: str) -> InputError:
    """What ONNX Runtime says of a graph that it does not take."""
    details = [line.strip()[:300] for line in str(error).strip().splitlines()[:3]]
    hint = "copy it again, with its .data file where it has one, or write it anew with `vexport onnx`"
    return InputError(message, details=details, hint=hint)


def why_not_provider(name: str) -> str | None:
    """The reason why an execution provider does not load here, tried on a graph of one node; None where it does."""
    node = helper.make_node("Relu", ["x"], ["y"])
    values = [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [1]) for tensor in ("x", "y")]
    graph = helper.make_graph([node], "one", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    try:
        open_session(model.SerializeToString(), (name,), None)
    except InputError as error:
        return "; ".join((error.message, *error.details))
    return None


def _not_in_use(missing: Sequence[str], there: Sequence[str], reason: str = "") -> InputError:
    return InputError(
        f"ONNX Runtime does not use {', '.join(missing)} here",
        # Past the place in ONNX Runtime's source: what is wrong.
        details=[*reason.rpartition("&) ")[2].strip().splitlines()[:1], f"it has: {', '.join(there)}"],
        hint=f"install the provider's libraries and driver, or take {CPU}",
    )
