"""What this machine can do, and what is missing with the command that adds it."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

from vexport.deps import EXTRAS, installed_version
from vexport.engine.runtime import INSTALL, MODULES, RuntimeName, TensorRT, describe_runtime
from vexport.engine.target import Device, find_devices
from vexport.errors import MissingDependencyError

LIBRARIES = ("timm", "onnx", "onnxscript", "onnxsim", "onnxruntime-gpu", "onnxruntime", "polygraphy", "safetensors")
# Where a module is called otherwise.
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "pynvml": "nvidia-ml-py",
    "pytorch_grad_cam": "grad-cam",
    "cv2": "opencv-python-headless",
}
PROVIDER_FIXES = {
    "CUDAExecutionProvider": "the CUDA and cuDNN libraries that this ONNX Runtime was built for, and a driver",
    "TensorrtExecutionProvider": "the TensorRT and CUDA libraries that this ONNX Runtime was built for, and a driver",
}
NO_GPU = "no GPU with a driver"
ERRORS, FATAL_ONLY = 3, 4  # of ONNX Runtime's log


@dataclass(frozen=True)
class Finding:
    """One thing looked for.

    Args:
        name: What.
        found: Whether it is there and works.
        version: Of it; None where it is missing or has none.
        detail: What it can do; or why it is missing.
        fix: The command or step that adds it, where it is missing.
        facts: What `detail` says, for programs.
    """

    name: str
    found: bool
    version: str | None = None
    detail: str = ""
    fix: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Args:
        vexport: Version.
        python: Version and platform.
        driver: The CUDA driver.
        torch: PyTorch.
        cuda: Whether PyTorch can use CUDA; the version is the one it was built with.
        devices: GPUs.
        runtimes: Each TensorRT.
        providers: ONNX Runtime's execution providers, each tried.
        libraries: What vexport stands on.
        extras: Optional packages.
        abilities: What this machine can do, in words.
    """

    vexport: str
    python: str
    driver: Finding
    torch: Finding
    cuda: Finding
    devices: tuple[Device, ...]
    runtimes: tuple[Finding, ...]
    providers: tuple[Finding, ...]
    libraries: tuple[Finding, ...]
    extras: tuple[Finding, ...]
    abilities: tuple[Finding, ...]

    @property
    def missing(self) -> list[Finding]:
        """What could be added, each remedy once."""
        parts = (self.driver, self.torch, self.cuda, *self.runtimes, *self.providers, *self.libraries, *self.extras)
        remedies: dict[str, Finding] = {}
        for part in parts:
            if not part.found and part.fix:
                remedies.setdefault(part.fix, part)
        return list(remedies.values())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def diagnose() -> Diagnosis:
    """Look at this machine. Nothing is changed, and what is missing is a finding, not an error."""
    driver = _driver()
    torch, cuda, devices = _torch(driver)
    runtimes = tuple(_runtime(name, devices) for name in MODULES)
    extras = tuple(_extra(name) for name in EXTRAS)
    return Diagnosis(
        vexport=installed_version("vexport"),
        python=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        driver=driver,
        torch=torch,
        cuda=cuda,
        devices=devices,
        runtimes=runtimes,
        providers=tuple(_providers()),
        libraries=tuple(_library(name) for name in LIBRARIES if name != "onnxruntime" or not _has("onnxruntime-gpu")),
        extras=extras,
        abilities=tuple(_abilities(devices, runtimes, extras)),
    )


def _has(distribution: str) -> bool:
    return installed_version(distribution) != "missing"


def _first_line(error: Exception) -> str:
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def _library(name: str) -> Finding:
    if not _has(name):
        return Finding(name, False, fix=f"pip install {name}")
    return Finding(name, True, installed_version(name))


def _driver() -> Finding:
    """The CUDA version that the driver supports, from the driver itself."""
    try:
        ask = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1").cuDriverGetVersion
    except (OSError, AttributeError) as error:
        fix = "install NVIDIA's driver, on a machine with its GPU"
        return Finding("CUDA driver", False, detail=_first_line(error), fix=fix)
    number = ctypes.c_int(0)
    code = ask(ctypes.byref(number))
    if code != 0:
        return Finding("CUDA driver", False, detail=f"cuDriverGetVersion fails with {code}", fix="reinstall the driver")
    return Finding(
        "CUDA driver", True, f"{number.value // 1000}.{number.value % 1000 // 10}", "newest CUDA it supports"
    )


def _torch(driver: Finding) -> tuple[Finding, Finding, tuple[Device, ...]]:
    """PyTorch, whether it can use CUDA, and the GPUs."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of it does not load
        package = Finding("PyTorch", False, detail=_first_line(error), fix="pip install torch")
        return package, Finding("CUDA in PyTorch", False, detail="PyTorch cannot be loaded"), ()
    package, built = Finding("PyTorch", True, str(torch.__version__)), torch.version.cuda
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PyTorch warns of, it fails with as well
        try:
            devices = tuple(find_devices())
            reason = "usable" if devices else _why_no_cuda()
        except RuntimeError as error:  # a GPU that does not answer
            devices, reason = (), _first_line(error)
    fix = "install PyTorch from an index with CUDA" if built is None and driver.found and not devices else ""
    return package, Finding("CUDA in PyTorch", bool(devices), built, reason, fix), devices


def _why_no_cuda() -> str:
    import torch

    if torch.version.cuda is None:
        return "built without CUDA"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # it says why by failing
    except (RuntimeError, AssertionError) as error:
        return _first_line(error).partition(". ")[0]
    return "no GPU is visible"


def _runtime(name: RuntimeName, devices: tuple[Device, ...]) -> Finding:
    try:
        runtime = describe_runtime(name)
    except MissingDependencyError as error:
        return Finding(name, False, detail="; ".join((error.message, *error.details)), fix=error.hint)
    except Exception as error:  # a broken installation may raise anything when it is imported
        reason = f"{name} cannot be used; {type(error).__name__}: {_first_line(error)}"
        return Finding(name, False, detail=reason, fix=INSTALL[name])
    facts = {
        "targets": list(runtime.targets),
        "this_gpu": devices[0].capability if devices else None,
        "strongly_typed": runtime.strongly_typed,
        "timing_cache": runtime.has_timing_cache,
        "version_compatible": runtime.has_version_compatible,
    }
    said = [
        _builds(runtime, devices),
        _runs(runtime, devices),
        "strongly typed" if runtime.strongly_typed else "precision by flags (weakly typed)",
        "timing cache" if runtime.has_timing_cache else "no timing cache",
        f"{'' if runtime.has_version_compatible else 'no '}version-compatible engines",
    ]
    return Finding(name, True, runtime.version, "; ".join(said), facts=facts)


def _builds(runtime: TensorRT, devices: tuple[Device, ...]) -> str:
    """The GPUs that engines can be built for here."""
    here = f"sm{devices[0].capability}" if devices else None
    if not runtime.is_rtx:
        return f"builds for {here}, the GPU at hand" if here else f"builds nothing here: {NO_GPU}, and it names none"
    named = f"builds for {', '.join(f'sm{target}' for target in runtime.targets)} on any machine"
    if devices and devices[0].capability not in runtime.targets:
        # The builder takes it; NVIDIA's list of supported GPUs has the named ones only.
        return f"{named}, and as `current` for {here}, which it does not name"
    return named


def _runs(runtime: TensorRT, devices: tuple[Device, ...]) -> str:
    """The engines that can be run here."""
    if not devices:
        return f"runs nothing here: {NO_GPU}"
    named = not runtime.is_rtx or devices[0].capability in runtime.targets
    return f"runs engines for sm{devices[0].capability}{'' if named else ' built as `current`, where it takes them'}"


def _extra(name: str) -> Finding:
    missing = [module for module in EXTRAS[name] if find_spec(module) is None]
    packages = {module: DISTRIBUTIONS.get(module, module) for module in EXTRAS[name]}
    said = [f"{package} {installed_version(package)}" for package in packages.values()]
    fix = f"pip install 'vexport[{name}]'" if missing else ""
    return Finding(f"extra {name}", not missing, detail=", ".join(said), fix=fix)


def _providers() -> Iterator[Finding]:
    """Every execution provider, on a graph of one node: one that falls back to the CPU does not count."""
    try:
        import onnxruntime as ort

        model = _one_node()
    except (ImportError, OSError) as error:
        yield Finding("ONNX Runtime", False, detail=_first_line(error), fix="pip install onnxruntime-gpu")
        return
    for name in ort.get_available_providers():
        with _overheard() as said:
            # Why a library does not load is in the log alone, and nobody sees it here.
            ort.set_default_logger_severity(ERRORS)
            options = ort.SessionOptions()
            options.log_severity_level = ERRORS
            try:
                loads, reason = name in ort.InferenceSession(model, options, providers=[name]).get_providers(), ""
            except Exception as error:  # ONNX Runtime's errors have no common base class but Exception
                loads, reason = False, _first_line(error)
            finally:
                ort.set_default_logger_severity(FATAL_ONLY)
        if loads:
            yield Finding(name, True)
        else:
            reason = next(iter(said), reason) or "it falls back to the CPU and does not say why"
            yield Finding(name, False, detail=_shorten(reason), fix=PROVIDER_FIXES.get(name, ""))


def _one_node() -> bytes:
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())


def _shorten(text: str, width: int = 160) -> str:
    # Past the place in ONNX Runtime's source and the path of its library: what is wrong.
    text = re.split(r"with error: |FAIL : |&\) ", " ".join(text.split()))[-1]
    return text if len(text) <= width else f"{text[: width - 3]}..."


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """What Python prints, and native code writes to standard error, meanwhile: kept, not shown. Native lines first."""
    said: list[str] = []
    printed = io.StringIO()
    with tempfile.TemporaryFile("w+b") as scratch, _standard_error_to(scratch.fileno()):
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                yield said
        finally:
            scratch.seek(0)
            text = scratch.read().decode(errors="replace") + printed.getvalue()
            lines = (re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in text.splitlines())
            said.extend(line for line in lines if line and not line.startswith("*"))


@contextmanager
def _standard_error_to(descriptor: int) -> Iterator[None]:
    try:
        before = os.dup(2)
    except OSError:  # it is closed: nothing would be shown
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _abilities(
    devices: tuple[Device, ...], runtimes: tuple[Finding, ...], extras: tuple[Finding, ...]
) -> Iterator[Finding]:
    yield Finding("fuse, export, check", True, detail="on any machine")
    there = [finding for finding in runtimes if finding.found]
    for finding in there:
        can = bool(devices or finding.facts["targets"])
        builds = finding.detail.partition(";")[0].removeprefix("builds ")
        yield Finding(f"build engines with {finding.name}", can, finding.version, builds)
    none = "no TensorRT can be loaded"
    if not there:
        yield Finding("build engines", False, detail=none, fix=runtimes[0].fix)
    can = bool(devices and there)
    where = f"{devices[0].name}, sm{devices[0].capability}" if devices else NO_GPU
    which = f"with {', '.join(f'{finding.name} {finding.version}' for finding in there)} on {where}"
    yield Finding("run engines", can, detail=which if can else none if devices else NO_GPU)
    # What `bench` times on a GPU are engines.
    yield Finding("measure on a GPU", can, detail=where if can else "no engine runs here")
    train = next(finding for finding in extras if finding.name == "extra train")
    yield Finding("train, quickstart", train.found, detail="" if train.found else train.fix)
