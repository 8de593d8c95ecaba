"""Graph to TensorRT engine: convert where needed, build, read the precision back, prove what this machine can."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vexport.artifacts import Engine, Manifest
from vexport.deps import tool_versions
from vexport.engine.build import BuildOptions, BuiltPlan, build_plan, require_options
from vexport.engine.cache import EngineCache, cache_key, default_folder
from vexport.engine.inspect import count_precisions, floating, other_fp32
from vexport.engine.int8 import describe_read_back
from vexport.engine.runtime import RuntimeName, TensorRT, choose_runtime
from vexport.engine.target import REFERENCE, find_devices, name_targets, parse_targets, require_targets
from vexport.errors import EngineError, InputError
from vexport.pipeline.convert import ConvertResult
from vexport.pipeline.depthwise import DepthwiseOption
from vexport.pipeline.ready import Int8Request, Precision, ReadyGraph, Request, fit_fixed_batch, ready_graph
from vexport.pipeline.resolve import Weights
from vexport.workspace import Workspace, require_clear, stage, up_to_date

if TYPE_CHECKING:
    from vexport.engine.target import Device
    from vexport.pipeline.quantize import QuantizeResult


@dataclass(frozen=True)
class BuildResult:
    """An engine and how it came about.

    Args:
        artifact: The engine; its manifest holds precision, target, profile, layers and parity.
        took: Which graph was taken, in words.
        up_to_date: Whether it was there already.
        from_cache: Whether it had been built before, elsewhere or under other options since.
        converted: The 16-bit graph, or the INT8 graph with FP16 for the rest, made on the way where one was needed.
        notes: What the reader should know.
        graph: The graph that was built, in its precision.
        quantised: The INT8 graph made on the way, where one was needed.
    """

    artifact: Engine
    took: str
    up_to_date: bool
    from_cache: bool
    converted: ConvertResult | None
    notes: tuple[str, ...]
    graph: Path
    quantised: QuantizeResult | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.artifact.path),
            "took": self.took,
            "up_to_date": self.up_to_date,
            "from_cache": self.from_cache,
            "quantised": self.quantised.to_json() if self.quantised else None,
            "converted": self.converted.to_json() if self.converted else None,
            "notes": list(self.notes),
            "manifest": self.artifact.manifest.to_json(),
        }


def build_engine(
    graph: Path | None = None,
    *,
    workspace: Workspace,
    precision: Precision = "fp16",
    model: str | None = None,
    weights: Weights | None = None,
    target: str | None = None,
    runtime: RuntimeName | Literal["auto"] = "auto",
    options: BuildOptions | None = None,
    images: Path | None = None,
    calib: Path | None = None,
    int8_depthwise: DepthwiseOption | None = None,
    output: Path | None = None,
    use_cache: bool = True,
    force: bool = False,
    on_progress: Callable[[str, float | None], None] = lambda _text, _share: None,
) -> BuildResult:
    """Build the TensorRT engine of a graph.

    Args:
        graph: The .onnx file, or a checkpoint to export; None takes the newest FP32 graph of the workspace (for `int8`
            see `find_int8_graph`), then exports `model`.
        workspace: Where the result goes, unless `output` says otherwise.
        precision: What the engine computes in; an FP32 graph is converted first.
        model: A variant or a baseline.
        weights: `pretrained` or `random` in place of a file.
        target: `current`, a GPU's name, or compute capabilities as `sm80,sm86`; None is the GPU at hand, and the
            A100 where there is none.
        runtime: Which TensorRT.
        options: Profile and builder options; precision and targets are filled in here.
        images: On which activations are measured and answers compared.
        calib: Images to quantise an FP32 graph on, for `int8`.
        int8_depthwise: Whether depthwise convolutions compute in INT8; `auto`, and None, build and time both on the GPU
            at hand and keep the faster; where none can be timed they compute in FP16.
        output: The file to write.
        use_cache: Whether an engine built before may be taken.
        force: Overwrite a file that vexport did not write.
        on_progress: Told what is going on, and the share that is done where it is known.

    Raises:
        VexportError: see the tree in errors.py; no engine has been written then.
    """
    if output is not None and output.suffix not in (".engine", ".plan"):
        raise InputError(f"{output} ends in neither .engine nor .plan", hint="name it so")
    if precision != "int8" and (calib is not None or int8_depthwise is not None):
        raise InputError("--calib and --int8-depthwise go with --int8", hint="leave them out, or add --int8")
    devices = find_devices()
    wanted, notes = _targets(target, devices)
    chosen = choose_runtime(runtime, by_name=not _is_current(wanted, target, devices))
    wanted = _require_buildable(wanted, chosen, devices, notes)
    asked = replace(options or BuildOptions(precision), precision=precision, targets=wanted)
    require_options(asked, chosen)
    if chosen.is_rtx and (asked.refit or asked.strip) and not devices:
        raise EngineError(
            "refittable and stripped engines are compiled while they are built, and there is no GPU with a driver here",
            hint="build them on a machine with a GPU, or leave --refit and --strip out",
        )
    place = name_targets(wanted or (devices[0].capability,))

    def build_again(source: Path, depthwise: DepthwiseOption, file: Path) -> BuildResult:
        return build_engine(
            source,
            workspace=workspace,
            precision="int8",
            target=target,
            runtime=runtime,
            options=options,
            images=images,
            int8_depthwise=depthwise,
            output=file,
            use_cache=use_cache,
            force=force,
            on_progress=on_progress,
        )

    can_run = bool(devices) and (not wanted or devices[0].capability in wanted)
    ready = ready_graph(
        Request(graph, precision, workspace, model, weights, images, force, on_progress),
        Int8Request(calib, int8_depthwise or "auto", chosen, can_run, build_again, asked.to_json()),
        lambda stem: output or workspace.root / f"{stem}.{precision}.{place}.engine",
    )
    asked = fit_fixed_batch(asked, ready.graph.path)
    device = None if wanted else {"name": devices[0].name, "capability": devices[0].capability}
    request = {**asked.to_json(), "runtime": chosen.to_json(), "device": device}
    told = {"int8_depthwise": ready.depthwise} if ready.depthwise else {}
    versions = tool_versions("polygraphy")
    job = _Job(ready, asked, chosen, request | told, versions, (*notes, *ready.notes), devices, force)
    parent = ready.graph.parent.sha256
    done = up_to_date(Engine, ready.engine, parent=parent, options=job.request, versions=versions)
    if done is not None:
        return _result(job, _proven(done, chosen, devices, ready.graph.path), up_to_date=True)
    require_clear(ready.engine, force=force)

    # How depthwise layers were chosen is in the graph: engines built to be timed are found again.
    key = cache_key(parent=parent, options=request, versions=versions)
    cache = EngineCache(default_folder())
    with cache.locked(key, lambda: on_progress("waiting for another build of this engine", None)):
        found = cache.find(key) if use_cache else None
        if found is not None:
            # Another process may throw it out of the cache meanwhile: then it is built.
            with contextlib.suppress(FileNotFoundError):
                artifact = _publish(job, lambda file: _link(found.path, file), found.facts)
                return _result(job, artifact, from_cache=True)
        artifact = _build(job, on_progress)
        cache.store(key, artifact.path, artifact.sha256, artifact.facts["build"])
    return _result(job, artifact)


def _proven(engine: Engine, runtime: TensorRT, devices: list[Device], graph: Path) -> Engine:
    """An engine that was built where it could not run is proven now, where it can."""
    from vexport.engine.plan import why_not_here
    from vexport.pipeline.prove_engine import prove_pending

    if why_not_here(engine.manifest, runtime.version, devices):
        return engine
    manifest = prove_pending(engine.path, [graph])
    return replace(engine, manifest=manifest) if isinstance(manifest, Manifest) else engine


@dataclass(frozen=True)
class _Job:
    """What a build needs to know."""

    ready: ReadyGraph
    options: BuildOptions
    runtime: TensorRT
    request: dict[str, Any]
    versions: dict[str, str]
    notes: tuple[str, ...]
    devices: list[Device]
    force: bool

    @property
    def targets(self) -> tuple[int, ...]:
        return self.options.targets or (self.devices[0].capability,)


def _result(job: _Job, engine: Engine, *, up_to_date: bool = False, from_cache: bool = False) -> BuildResult:
    ready = job.ready
    notes = tuple(engine.facts["notes"])
    return BuildResult(
        engine, ready.graph.took, up_to_date, from_cache, ready.converted, notes, ready.graph.path, ready.quantised
    )


def _targets(target: str | None, devices: list[Device]) -> tuple[tuple[int, ...], list[str]]:
    """Compute capabilities to build for, none for the GPU at hand; and what to say about it."""
    if target is not None:
        wanted = parse_targets(target)
        if not wanted and not devices:
            raise EngineError(
                "--target current: there is no GPU with a driver here", hint="name one, as in --target a100"
            )
        return wanted, []
    if devices:
        return (), []
    return (REFERENCE,), [f"there is no GPU here: built for the A100 (sm{REFERENCE}); --target names others"]


def _is_current(wanted: tuple[int, ...], target: str | None, devices: list[Device]) -> bool:
    """Whether the GPU at hand is what is built for, named or not."""
    return bool(devices) and (not wanted or wanted == (devices[0].capability,))


def _require_buildable(
    wanted: tuple[int, ...], runtime: TensorRT, devices: list[Device], notes: list[str]
) -> tuple[int, ...]:
    """Named GPUs for TensorRT for RTX, none for classic TensorRT, which builds for the one at hand."""
    if not runtime.is_rtx:
        if not devices:
            raise EngineError(
                "tensorrt builds for the GPU at hand, and there is none with a driver here",
                hint="take --runtime tensorrt-rtx with --target a100",
            )
        return ()
    if not wanted and devices[0].capability in runtime.targets:
        return (devices[0].capability,)
    if not wanted:
        notes.append(f"{runtime.name} {runtime.version} does not name sm{devices[0].capability}: built as `current`")
        return ()
    require_targets(wanted, runtime)
    return wanted


def _build(job: _Job, on_progress: Callable[[str, float | None], None]) -> Engine:
    """Build anew. The plan stands under its final name only once its precision has been read back."""
    timing = None
    if job.runtime.has_timing_cache:
        device = job.devices[0].name.replace(" ", "_")
        timing = default_folder() / "timing" / f"{job.runtime.name}-{job.runtime.version}-{device}.cache"
    graph = job.ready.graph
    built = build_plan(
        graph.path,
        job.options,
        job.runtime,
        kept_fp32=graph.facts.get("kept_fp32"),
        int8=job.ready.int8,
        timing_cache=timing,
        on_progress=on_progress,
    )
    facts = _build_facts(job, built)
    return _publish(job, lambda file: file.write_bytes(built.plan), facts)


def _build_facts(job: _Job, built: BuiltPlan) -> dict[str, Any]:
    """What is true of the plan itself, wherever it is copied.

    Raises:
        PrecisionError: the builder says that a layer does not compute in what the graph says.
    """
    kept = job.ready.graph.facts.get("kept_fp32", {})
    plan = job.ready.int8
    report = {"precision_built": describe_read_back(built.built, plan, kept)} if plan else {}
    return report | {
        "build_s": round(built.build_s, 3),
        "profile": built.profile,
        "network_layers": [layer.to_json() for layer in floating(built.layers)],
        "precision_network": count_precisions(built.layers),
        "other_fp32": other_fp32(built.layers, job.options.precision, kept),
        "strongly_typed": job.runtime.strongly_typed,
        "timing_cache": job.runtime.has_timing_cache,
        "built_on": job.devices[0].name if job.devices else "a machine without a GPU",
    }


def _publish(job: _Job, write: Callable[[Path], Any], build: dict[str, Any]) -> Engine:
    graph, options = job.ready.graph, job.options
    facts = {key: value for key, value in graph.facts.items() if key != "max_abs_by_tensor"} | {
        "precision": options.precision,
        "runtime": job.runtime.to_json(),
        "targets": list(job.targets),
        "hardware_compatible": options.hardware_compatible,
        "version_compatible": options.version_compatible,
        "refittable": options.refit or options.strip,
        "stripped": options.strip,
        "tf32": options.tf32,
        "profile": build["profile"],
        "build": build,
        "notes": list(job.notes),
    }
    with stage(job.ready.engine, force=job.force) as staging:
        write(staging.path)
        draft = Manifest("engine", "", 0, graph.parent, job.request, facts, versions=job.versions)
        read_back, parity = _prove(job, staging.path, draft)
        return staging.publish(
            Engine,
            lambda sha256, size: replace(
                draft, sha256=sha256, size_bytes=size, facts=facts | {"precision_engine": read_back}, parity=[parity]
            ),
        )


def _prove(job: _Job, plan: Path, draft: Manifest) -> tuple[dict[str, Any], dict[str, Any]]:
    """Precision read back and parity, where this machine can run the engine; else why not."""
    from vexport.engine.plan import why_not_here

    reason = why_not_here(draft, job.runtime.version, job.devices)
    if reason is not None:
        return {"result": "not run", "reason": reason}, {
            "result": "not run",
            "reason": reason,
            "with": job.ready.graph.path.name,
        }
    if job.options.precision == "int8":
        from vexport.pipeline.prove_int8 import prove_int8_engine

        return prove_int8_engine(plan, job.ready.graph.path, job.runtime, draft)
    from vexport.pipeline.prove_engine import prove_engine

    return prove_engine(plan, job.ready.graph.path, job.runtime, draft)


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name, without taking room twice where the file system allows."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
