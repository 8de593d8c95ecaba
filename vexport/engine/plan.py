"""A plan on disk: whether to trust it, whether it can run here, and opening it.

Deserialising a plan runs native code that it carries. So only a plan whose hash its manifest knows is opened, unless
the user vouches for it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vexport.artifacts import Engine, Manifest
from vexport.engine.messages import first_lines, heard
from vexport.engine.runtime import TensorRT, describe_runtime, use_polygraphy
from vexport.engine.target import Device, find_devices, name_targets
from vexport.errors import EngineError, InputError
from vexport.workspace import hash_file, manifest_path, read_manifest, require_file

# How plans begin, from the builders' own output: TensorRT for RTX, classic TensorRT 8.6 and later.
_MAGIC = (b"vtrt", b"ftrt", b"ptrt", b"trt\x00")


# What an engine's manifest always says.
_FACTS = frozenset({"precision", "runtime", "targets"})


def require_trusted(path: Path, *, trust: bool = False) -> Manifest | None:
    """Refuse a plan that vexport did not write or that was changed since.

    Args:
        path: The plan.
        trust: The user vouches for it.

    Returns:
        Its manifest; None for a trusted plan without one.

    Raises:
        InputError: there is no such file.
        EngineError: it is unknown, altered or truncated.
    """
    require_file(path, "plan")
    manifest = read_manifest(path)
    if manifest is None or manifest.kind != Engine.kind or not manifest.facts.keys() >= _FACTS:
        if trust:
            return None
        raise EngineError(
            f"{path} is unknown: there is no manifest of vexport's beside it",
            details=["opening a plan runs native code that is in it"],
            hint=f"copy {manifest_path(path).name} along with it, build it again, or vouch for it with --trust",
        )
    size = path.stat().st_size
    if size != manifest.size_bytes or hash_file(path) != manifest.sha256:
        if trust:
            return manifest
        what = "truncated" if size < manifest.size_bytes else "altered"
        raise EngineError(
            f"{path} is {what}: its manifest knows other contents",
            details=[f"{size} bytes, the manifest says {manifest.size_bytes}"],
            hint="copy it again, build it again, or vouch for it with --trust",
        )
    return manifest


def why_not_here(manifest: Manifest, runtime_version: str, devices: list[Device]) -> str | None:
    """Why an engine cannot run on this machine; None where it can.

    Args:
        manifest: Of the engine.
        runtime_version: Of the installed TensorRT that it needs.
        devices: The GPUs of this machine.
    """
    facts = manifest.facts
    built_with = facts["runtime"]["version"]
    targets = tuple(facts["targets"])
    if not devices:
        return f"no GPU with a driver here; built for {name_targets(targets)}"
    here = devices[0]
    ampere_plus = facts.get("hardware_compatible") and here.capability >= 80
    if here.capability not in targets and not ampere_plus:
        return f"built for {name_targets(targets)}; {here.name} is sm{here.capability}"
    if built_with != runtime_version and not facts.get("version_compatible"):
        return f"built with {facts['runtime']['name']} {built_with}; {runtime_version} is installed"
    return None


def open_plan(
    path: Path, *, trust: bool = False, runtime: TensorRT | None = None
) -> tuple[Any, TensorRT, Manifest | None]:
    """Deserialise a plan.

    Args:
        path: The plan.
        trust: The user vouches for a plan that vexport does not know.
        runtime: Which TensorRT; None takes the one in the manifest.

    Returns:
        The engine, the TensorRT that it belongs to, and its manifest where it has one.

    Raises:
        EngineError: it is not trusted, is for another GPU or version, or TensorRT refuses it.
    """
    manifest = require_trusted(path, trust=trust)
    if runtime is None:
        runtime = describe_runtime(manifest.facts["runtime"]["name"] if manifest else _guess_runtime(path))
    devices = find_devices()
    if manifest is not None and (reason := why_not_here(manifest, runtime.version, devices)):
        raise EngineError(f"{path.name} cannot run here: {reason}", hint=_hint(manifest, devices))
    if not devices:
        raise EngineError(
            f"{path.name} cannot run here: there is no GPU with a driver", hint="`vexport doctor` says what is missing"
        )
    data = path.read_bytes()
    # Asked of the very bytes that are opened: the file may have changed since it was looked at.
    if manifest is not None and not trust and hashlib.sha256(data).hexdigest() != manifest.sha256:
        raise EngineError(f"{path} is altered: it changed while it was opened", hint="copy it again")
    lean = bool(manifest and manifest.facts.get("version_compatible"))
    return deserialize(data, runtime, name=path.name, lean=lean), runtime, manifest


def deserialize(plan: bytes, runtime: TensorRT, *, name: str, lean: bool = False) -> Any:
    """Open a plan without asking whether it is trusted: for one that was built just now.

    Args:
        plan: Its bytes.
        runtime: Which TensorRT.
        name: For the message.
        lean: Whether the plan carries its own runtime (version-compatible).

    Raises:
        EngineError: TensorRT refuses it; what it said is in the details.
    """
    backend = use_polygraphy(runtime)
    with heard() as said:
        loader = runtime.load().Runtime(backend.get_trt_logger())
        if lean:
            loader.engine_host_code_allowed = True
        engine = loader.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"{runtime.name} {runtime.version} refuses {name}",
            details=first_lines(said),
            hint="build it again on this machine, with this version",
        )
    return engine


def _guess_runtime(path: Path) -> Any:
    """Which TensorRT wrote a plan without a manifest, by how it begins.

    Raises:
        InputError: it is no plan.
    """
    with path.open("rb") as stream:
        start = stream.read(4)
    if not start.startswith(_MAGIC):
        raise InputError(f"{path} is not a TensorRT plan", hint="give an .engine or .plan file that TensorRT wrote")
    return "tensorrt-rtx" if start.startswith(b"vtrt") else "tensorrt"


def _hint(manifest: Manifest, devices: list[Device]) -> str:
    if not devices:
        return "copy it with its manifest to a machine with that GPU and run `vexport check` there"
    return f"build it again: vexport trt --{manifest.facts['precision']} --target sm{devices[0].capability}"
