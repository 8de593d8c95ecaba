"""Which TensorRT: the one file that knows how the versions differ.

    TensorRT for RTX   strongly typed; builds for named GPUs on any machine; no timing cache; no lean runtime
    TensorRT 10, 11    strongly typed; builds for the GPU at hand; timing cache; version-compatible engines
    TensorRT 8.6       weakly typed: the graph's types only hold with the FP16 and INT8 flags; explicit-batch flag

Precision lives in the graph everywhere; on 8.6 flags and layer constraints repeat what the graph says.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType, ModuleType
from typing import Any, Literal

from vexport.errors import EngineError, MissingDependencyError

RuntimeName = Literal["tensorrt-rtx", "tensorrt"]
MODULES: Mapping[RuntimeName, str] = MappingProxyType({"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"})
INSTALL: Mapping[RuntimeName, str] = MappingProxyType(
    {"tensorrt-rtx": "pip install tensorrt-rtx", "tensorrt": "pip install 'vexport[trt]'"}
)


@dataclass(frozen=True)
class TensorRT:
    """One installed TensorRT and what it can do.

    Args:
        name: `tensorrt-rtx` or `tensorrt`.
        version: As the module says.
        targets: Compute capabilities it builds for by name (80 for 8.0); empty: only for the GPU at hand.
    """

    name: RuntimeName
    version: str
    targets: tuple[int, ...] = ()

    @property
    def is_rtx(self) -> bool:
        return self.name == "tensorrt-rtx"

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version."""
        numbers = [int(number) for number in re.findall(r"\d+", self.version)]
        return (numbers[0], numbers[1]) if len(numbers) > 1 else (0, 0)

    @property
    def strongly_typed(self) -> bool:
        """Whether the network's types are the graph's; otherwise the builder chooses within its flags."""
        return self.is_rtx or self.release >= (10, 0)

    @property
    def has_timing_cache(self) -> bool:
        """TensorRT for RTX times nothing at build time: it compiles kernels when the engine is first run."""
        return not self.is_rtx

    @property
    def has_version_compatible(self) -> bool:
        """Engines that newer versions run too; they need the lean runtime, which TensorRT for RTX has not."""
        return not self.is_rtx and self.release >= (8, 6)

    @property
    def has_strip(self) -> bool:
        """Plans without weights, to be refitted where they run."""
        return self.is_rtx or self.release >= (10, 0)

    @property
    def has_progress(self) -> bool:
        """Whether the builder tells how far it is, and can be stopped."""
        return self.is_rtx or self.release >= (8, 6)

    def load(self) -> Any:
        """The TensorRT module itself.

        Raises:
            MissingDependencyError: it cannot be imported.
        """
        return _import(self.name)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version}


def _import(name: RuntimeName) -> ModuleType:
    try:
        return import_module(MODULES[name])
    except (ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MissingDependencyError(
            f"{name} is not installed" if find_spec(MODULES[name]) is None else f"{name} cannot be loaded",
            details=[reason],
            hint=INSTALL[name],
        ) from error


def describe_runtime(name: RuntimeName) -> TensorRT:
    """What the installed TensorRT of that name is.

    Raises:
        MissingDependencyError: it is not installed, or its libraries do not load.
    """
    module: Any = _import(name)
    known = getattr(module, "ComputeCapability", None)
    named = () if known is None else tuple(known.__members__)
    targets = sorted(int(member[2:]) for member in named if member.startswith("SM"))
    return TensorRT(name, str(module.__version__), tuple(targets) if name == "tensorrt-rtx" else ())


def choose_runtime(wanted: RuntimeName | Literal["auto"], *, by_name: bool) -> TensorRT:
    """The TensorRT to build with.

    Args:
        wanted: `auto` takes classic TensorRT for the GPU at hand where it is installed, else TensorRT for RTX.
        by_name: Whether to build for named GPUs, which only TensorRT for RTX can.

    Raises:
        MissingDependencyError: there is none.
        EngineError: the one asked for cannot build for named GPUs.
    """
    if wanted != "auto":
        found = describe_runtime(wanted)
        if by_name and not found.is_rtx:
            raise EngineError(
                "tensorrt builds for the GPU at hand only",
                hint="leave --target out on a machine with that GPU, or take --runtime tensorrt-rtx",
            )
        return found
    if not by_name and find_spec(MODULES["tensorrt"]) is not None:
        # One that is there but does not load, as a placeholder package does, is passed over.
        with contextlib.suppress(MissingDependencyError):
            return describe_runtime("tensorrt")
    return describe_runtime("tensorrt-rtx")


def use_polygraphy(runtime: TensorRT) -> ModuleType:
    """Polygraphy's TensorRT backend, bound to this TensorRT.

    Polygraphy binds to one of the two when its backend is first imported, for the life of the process.

    Raises:
        EngineError: this process has used the other one already.
    """
    from polygraphy import config

    if "polygraphy.backend.trt" in sys.modules and bool(config.USE_TENSORRT_RTX) != runtime.is_rtx:
        raise EngineError(
            f"this process already uses the other TensorRT: {runtime.name} needs one of its own",
            hint="run the command again in a new process",
        )
    config.USE_TENSORRT_RTX = runtime.is_rtx
    _quieten()
    return import_module("polygraphy.backend.trt")


def _quieten() -> None:
    """Polygraphy's messages go to Python's logging, where `heard` listens; none is printed."""
    import logging

    from polygraphy.logger import G_LOGGER

    G_LOGGER.colors = False
    G_LOGGER.use_python_logging_system = True
    G_LOGGER.module_severity = G_LOGGER.WARNING
    logger = logging.getLogger("Polygraphy")
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
