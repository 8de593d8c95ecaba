"""What this machine can do, and what is missing with the command that adds it."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from vexport.deps import EXTRAS, installed_version
from vexport.engine.runtime import MODULES, RuntimeName, describe_runtime
from vexport.engine.target import Device, find_devices
from vexport.errors import MissingDependencyError

LIBRARIES = ("timm", "onnx", "onnxscript", "onnxsim", "onnxruntime-gpu", "onnxruntime", "polygraphy", "safetensors")


@dataclass(frozen=True)
class Finding:
    """One thing looked for.

    Args:
        name: What.
        found: Whether it is there and works.
        version: Of it, where it has one.
        detail: What it can do; or why it is missing.
        fix: The command or step that adds it.
    """

    name: str
    found: bool
    version: str = ""
    detail: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Args:
        python: Version and platform.
        driver: The CUDA driver.
        torch: PyTorch, and whether it can use CUDA.
        devices: GPUs.
        runtimes: Each TensorRT.
        providers: ONNX Runtime's execution providers, each tried.
        libraries: What vexport stands on.
        extras: Optional packages.
        abilities: What this machine can do, in words.
    """

    python: str
    driver: Finding
    torch: Finding
    devices: tuple[Device, ...]
    runtimes: tuple[Finding, ...]
    providers: tuple[Finding, ...]
    libraries: tuple[Finding, ...]
    extras: tuple[Finding, ...]
    abilities: tuple[Finding, ...]

    @property
    def missing(self) -> list[Finding]:
        """What could be added, each remedy once."""
        parts = (self.driver, self.torch, *self.runtimes, *self.providers, *self.libraries, *self.extras)
        return list({part.fix: part for part in reversed(parts) if not part.found and part.fix}.values())[::-1]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def diagnose() -> Diagnosis:
    """Look at this machine. Nothing is changed, and what is missing is a finding, not an error."""
    devices = tuple(find_devices())
    driver, torch = _driver(), _torch(devices)
    runtimes = tuple(_runtime(name, devices) for name in MODULES)
    extras = tuple(_extra(name) for name in EXTRAS)
    return Diagnosis(
        python=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        driver=driver,
        torch=torch,
        devices=devices,
        runtimes=runtimes,
        providers=tuple(_providers()),
        libraries=tuple(_library(name) for name in LIBRARIES if name != "onnxruntime" or not _has("onnxruntime-gpu")),
        extras=extras,
        abilities=tuple(_abilities(devices, runtimes, extras)),
    )


def _has(distribution: str) -> bool:
    return installed_version(distribution) != "missing"


def _library(name: str) -> Finding:
    version = installed_version(name)
    return Finding(name, version != "missing", "" if version == "missing" else version, fix=f"pip install {name}")


def _driver() -> Finding:
    """The CUDA version that the driver supports, from the driver itself."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        reason = str(error).splitlines()[0]
        return Finding("CUDA driver", False, detail=reason, fix="install NVIDIA's driver, on a machine with its GPU")
    number = ctypes.c_int(0)
    code = library.cuDriverGetVersion(ctypes.byref(number))
    if code != 0:
        return Finding("CUDA driver", False, detail=f"cuDriverGetVersion fails with {code}", fix="reinstall the driver")
    return Finding("CUDA driver", True, f"CUDA {number.value // 1000}.{number.value % 1000 // 10}")


def _torch(devices: tuple[Device, ...]) -> Finding:
    import torch

    built = torch.version.cuda
    detail = f"built for CUDA {built}" if built else "built for the CPU only"
    fix = "" if built else "pip install torch, without the CPU index"
    usable = bool(devices)
    return Finding(
        "PyTorch", True, torch.__version__, f"{detail}; CUDA {'usable' if usable else 'not usable'} here", fix
    )


def _runtime(name: RuntimeName, devices: tuple[Device, ...]) -> Finding:
    try:
        runtime = describe_runtime(name)
    except MissingDependencyError as error:
        return Finding(name, False, detail="; ".join((error.message, *error.details)), fix=error.hint)
    known = ", ".join(f"sm{target}" for target in runtime.targets)
    builds = f"builds for {known} on any machine" if runtime.is_rtx else "builds for the GPU at hand"
    if not devices:
        runs = "runs nothing here: no GPU with a driver" if runtime.is_rtx else "nothing to build for or run on here"
    elif runtime.is_rtx and devices[0].capability not in runtime.targets:
        runs = f"does not name sm{devices[0].capability}"
    else:
        runs = f"runs on sm{devices[0].capability}"
    typed = "types of the graph are binding" if runtime.strongly_typed else "precision by flags (weakly typed)"
    also = [
        word
        for word, there in (
            ("timing cache", runtime.has_timing_cache),
            ("version-compatible engines", runtime.has_version_compatible),
        )
        if there
    ]
    return Finding(name, True, runtime.version, "; ".join([builds, runs, typed, *also]))


def _extra(name: str) -> Finding:
    missing = [module for module in EXTRAS[name] if find_spec(module) is None]
    needed = ", ".join(EXTRAS[name])
    return Finding(f"extra {name}", not missing, detail=needed, fix=f"pip install 'vexport[{name}]'")


def _providers() -> Iterator[Finding]:
    """Every execution provider, on a graph of one node: one that falls back to the CPU does not count."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for name in ort.get_available_providers():
        with _overheard() as said:
            try:
                loads = name in ort.InferenceSession(model, options, providers=[name]).get_providers()
                reason = ""
            except Exception as error:  # ONNX Runtime's errors have no common base class but Exception
                loads, reason = False, str(error).splitlines()[0]
        reason = reason or (said[0] if said else "its libraries do not load; the CPU would take its place")
        fix = "" if loads else "the CUDA and TensorRT libraries of the ONNX Runtime release, and a driver"
        yield Finding(name, loads, detail="" if loads else _shorten(reason), fix=fix)


def _shorten(text: str, width: int = 160) -> str:
    # Past the place in ONNX Runtime's source: what it says.
    text = " ".join(text.split()).rpartition("&) ")[2]
    return text if len(text) <= width else f"{text[: width - 3]}..."


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """What ONNX Runtime prints, and its native code writes to standard error, meanwhile: kept, not shown."""
    said: list[str] = []
    sys.stderr.flush()
    before = os.dup(2)
    printed = io.StringIO()
    with tempfile.TemporaryFile("w+b") as scratch:
        os.dup2(scratch.fileno(), 2)
        try:
            with contextlib.redirect_stdout(printed):
                yield said
        finally:
            os.dup2(before, 2)
            os.close(before)
            scratch.seek(0)
            text = printed.getvalue() + scratch.read().decode(errors="replace")
            said.extend(line for line in text.splitlines() if line.strip(" *") and not line.startswith("*"))


def _abilities(
    devices: tuple[Device, ...], runtimes: tuple[Finding, ...], extras: tuple[Finding, ...]
) -> Iterator[Finding]:
    yield Finding("fuse, export, check", True, detail="on any machine")
    for name, finding in zip(MODULES, runtimes, strict=True):
        if finding.found:
            can = bool(devices) or name == "tensorrt-rtx"
            yield Finding(f"build engines with {name}", can, detail=finding.detail.split(";")[0])
    if not any(finding.found for finding in runtimes):
        yield Finding("build engines", False, detail="no TensorRT is installed", fix=runtimes[0].fix)
    here = f"{devices[0].name}, sm{devices[0].capability}" if devices else "there is no GPU with a driver"
    yield Finding("run engines, measure on a GPU", bool(devices) and any(f.found for f in runtimes), detail=here)
    train = next(finding for finding in extras if finding.name == "extra train")
    yield Finding("train, quickstart", train.found, detail="" if train.found else train.fix)
