"""The backends: what each computes with, what it takes and what it needs; and how it opens an artifact.

Nothing heavy is imported before a backend is opened or asked whether it works here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from vexport.deps import EXTRAS, needs
from vexport.errors import InputError, MissingDependencyError
from vexport.run.runner import Runner
from vexport.workspace import read_manifest

if TYPE_CHECKING:
    from torch import nn

    from vexport.engine.runtime import RuntimeName

Kind = Literal["checkpoint", "graph", "engine"]
BackendName = Literal[
    "pytorch",
    "pytorch-channels-last",
    "torch-compile",
    "pytorch-cuda",
    "pytorch-fp16",
    "torch-compile-fp16",
    "onnxruntime",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "openvino",
    "openvino-bf16",
    "tensorrt",
    "tensorrt-rtx",
]


@dataclass(frozen=True)
class Backend:
    """One way to run an artifact.

    Args:
        name: What `open_runner` calls it.
        title: What it is, in a line.
        takes: The artifact that it opens.
        device: Where it computes.
        extra: The optional packages that it needs, as pyproject.toml calls them; None where it needs none.
        why_not: Tries what it needs beyond that; says what is missing.
    """

    name: BackendName
    title: str
    takes: Kind
    device: Literal["cpu", "gpu"]
    why_not: Callable[[], str | None]
    extra: str | None = None

    def why_not_here(self) -> str | None:
        """The reason why it cannot run on this machine; None where it can."""
        for package in EXTRAS[self.extra] if self.extra else ():
            if find_spec(package) is None:
                return f"the package '{package}' is not installed: pip install 'vexport[{self.extra}]'"
        return self.why_not()

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the reason why it cannot run here."""
        said = asdict(self)
        del said["why_not"]
        return {**said, "why_not_here": self.why_not_here()}


def _anywhere() -> str | None:
    return None


def _no_gpu() -> str | None:
    from vexport.run.cuda import why_no_gpu

    return why_no_gpu()


def _no_compiler() -> str | None:
    from vexport.run.compiled import why_no_compiler

    return why_no_compiler("cpu")


def _no_gpu_compiler() -> str | None:
    from vexport.run.compiled import why_no_compiler

    return _no_gpu() or why_no_compiler("cuda")


def _no_provider(name: str) -> str | None:
    from vexport.run.ort_session import why_not_provider

    reason = why_not_provider(name)
    gpu = _no_gpu() if reason else None
    return f"{reason}; {gpu}" if gpu else reason


def _no_bf16() -> str | None:
    from vexport.run.openvino import why_not_precision

    return why_not_precision("bf16")


def _no_tensorrt(name: RuntimeName) -> str | None:
    from vexport.engine.runtime import describe_runtime

    try:
        describe_runtime(name)
    except MissingDependencyError as error:
        return f"{error.message}: {error.hint}"
    return _no_gpu()


_ALL = (
    Backend("pytorch", "PyTorch eager, FP32, on the CPU", "checkpoint", "cpu", _anywhere),
    Backend("pytorch-channels-last", "PyTorch eager, FP32, channels-last, on the CPU", "checkpoint", "cpu", _anywhere),
    Backend("torch-compile", "torch.compile, FP32, on the CPU", "checkpoint", "cpu", _no_compiler),
    Backend("pytorch-cuda", "PyTorch eager, FP32, as the published latencies", "checkpoint", "gpu", _no_gpu),
    Backend("pytorch-fp16", "PyTorch, FP16, channels-last, a CUDA graph", "checkpoint", "gpu", _no_gpu),
    Backend(
        "torch-compile-fp16", "torch.compile, FP16, channels-last, a CUDA graph", "checkpoint", "gpu", _no_gpu_compiler
    ),
    Backend("onnxruntime", "ONNX Runtime on the CPU", "graph", "cpu", _anywhere),
    Backend(
        "onnxruntime-cuda",
        "ONNX Runtime, the whole graph with CUDA",
        "graph",
        "gpu",
        lambda: _no_provider("CUDAExecutionProvider"),
    ),
    Backend(
        "onnxruntime-tensorrt",
        "ONNX Runtime, the whole graph with TensorRT",
        "graph",
        "gpu",
        lambda: _no_provider("TensorrtExecutionProvider"),
    ),
    Backend("openvino", "OpenVINO on the CPU, FP32 or Q/DQ INT8", "graph", "cpu", _anywhere, "openvino"),
    Backend("openvino-bf16", "OpenVINO on the CPU, BF16 or Q/DQ INT8", "graph", "cpu", _no_bf16, "openvino"),
    Backend("tensorrt", "a TensorRT engine", "engine", "gpu", lambda: _no_tensorrt("tensorrt")),
    Backend("tensorrt-rtx", "a TensorRT for RTX engine", "engine", "gpu", lambda: _no_tensorrt("tensorrt-rtx")),
)
BACKENDS: Mapping[str, Backend] = MappingProxyType({backend.name: backend for backend in _ALL})
RTX_MAGIC = b"vtrt"  # how plans of TensorRT for RTX begin
DEFAULTS: Mapping[Kind, BackendName] = MappingProxyType(
    {"checkpoint": "pytorch", "graph": "onnxruntime", "engine": "tensorrt"}
)


def kind_of(path: Path) -> Kind:
    """What an artifact is, by its suffix; what is no graph and no engine can only be a checkpoint."""
    kinds: dict[str, Kind] = {".onnx": "graph", ".engine": "engine", ".plan": "engine"}
    return kinds.get(path.suffix.lower(), "checkpoint")


def engine_backend(path: Path) -> BackendName:
    """The TensorRT that an engine belongs to: by its manifest, else by how plans begin; classic where neither says."""
    manifest = read_manifest(path)
    told = manifest.facts.get("runtime") if manifest else None
    if isinstance(told, Mapping) and told.get("name") in ("tensorrt", "tensorrt-rtx"):
        return "tensorrt-rtx" if told["name"] == "tensorrt-rtx" else "tensorrt"
    try:
        with path.open("rb") as stream:
            return "tensorrt-rtx" if stream.read(4).startswith(RTX_MAGIC) else "tensorrt"
    except OSError:
        return "tensorrt"


def backends_for(kind: Kind) -> list[str]:
    """Names of the backends that take such an artifact, whether they run here or not."""
    return [backend.name for backend in _ALL if backend.takes == kind]


def choose_backend(path: Path, name: str | None) -> Backend:
    """The backend for an artifact: by name, or the usual one of its kind.

    Raises:
        InputError: there is none of that name, it takes another kind of artifact, or cannot run here.
        MissingDependencyError: its packages are not installed.
    """
    kind = kind_of(path)
    if name is None:  # what it lacks, the file's own checks tell
        return BACKENDS[engine_backend(path) if kind == "engine" else DEFAULTS[kind]]
    backend = require_backend(name)
    if backend.takes != kind:
        raise InputError(
            f"the backend {name} takes {_a(backend.takes)}, and {path} is {_a(kind)}",
            hint=f"for {_a(kind)} there are {', '.join(backends_for(kind))}",
        )
    if kind == "engine" and (own := engine_backend(path)) != name:
        raise InputError(f"{path} is an engine of {own}, not of {name}", hint=f"take the backend {own}")
    return backend


def require_backend(name: str) -> Backend:
    """The backend of that name, where it runs here.

    Raises:
        InputError: there is none, or it cannot run here.
        MissingDependencyError: its packages are not installed.
    """
    if name not in BACKENDS:
        raise InputError(f"there is no backend {name}", hint=f"there are {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    if backend.extra:
        with needs(backend.extra):
            for package in EXTRAS[backend.extra]:
                if find_spec(package) is None:
                    import_module(package)
    if reason := backend.why_not():
        raise InputError(
            f"the backend {name} cannot run here", details=[reason], hint="`vexport doctor` says what is missing"
        )
    return backend


def open_module(
    module: nn.Module,
    input_size: tuple[int, int, int],
    *,
    name: str,
    backend: str = "pytorch",
    threads: int | None = None,
) -> Runner:
    """Open a module with one of PyTorch's backends.

    Args:
        module: Images (N, C, H, W) to logits (N, classes); not changed.
        input_size: C, H and W.
        name: For reports.
        backend: One that takes a checkpoint.
        threads: To compute with on the CPU; None leaves PyTorch's choice.

    Raises:
        InputError: there is no such backend, it takes no module, or cannot run here.
        EngineError: the GPU fails.
    """
    found = require_backend(backend)
    if found.takes != "checkpoint":
        raise InputError(
            f"the backend {backend} takes {_a(found.takes)}, not a module",
            hint=f"for a module there are {', '.join(backends_for('checkpoint'))}",
        )
    import torch

    options: dict[str, Any] = {"threads": threads, "channels_last": backend == "pytorch-channels-last"}
    if found.device == "gpu":
        options["device"] = "cuda"
    if backend.endswith("-fp16"):
        options |= {"dtype": torch.float16, "channels_last": True, "cuda_graph": True}
    if backend.startswith("torch-compile"):
        from vexport.run.compiled import CompiledRunner

        return CompiledRunner(module, input_size, name=name, **options)
    from vexport.run.pytorch import TorchRunner

    return TorchRunner(module, input_size, name=name, **options)


def open_graph(path: Path, backend: str = "onnxruntime", *, threads: int | None = None) -> Runner:
    """Open a graph with a backend that takes one. What `choose_backend` refuses is not checked again.

    Raises:
        InputError: the file is no graph that the backend can compute.
        PrecisionError: the backend computes in another precision than its name says.
        EngineError: the GPU fails.
    """
    if backend.startswith("openvino"):
        from vexport.run.openvino import OpenVinoRunner

        return OpenVinoRunner(path, precision="bf16" if backend.endswith("bf16") else "fp32", threads=threads)
    from vexport.run.ort import CPU, CUDA, TENSORRT, OrtRunner

    providers: Mapping[str, Sequence[str]] = {"onnxruntime-cuda": [CUDA], "onnxruntime-tensorrt": [TENSORRT]}
    return OrtRunner(path, providers=providers.get(backend, [CPU]), threads=threads)


def _a(kind: Kind) -> str:
    return "an engine" if kind == "engine" else f"a {kind}"
