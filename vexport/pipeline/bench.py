"""Latency of the workspace's graphs beside the baselines, in ONNX Runtime and in eager PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexport.artifacts import Artifact, BenchResult, Checkpoint, Engine, Graph, Manifest
from vexport.deps import tool_versions
from vexport.errors import InputError
from vexport.model.variants import VARIANTS, Published
from vexport.pipeline.export import export_graph
from vexport.pipeline.resolve import Weights, require_model
from vexport.workspace import Workspace, hash_file, load_artifact, read_manifest, stage

if TYPE_CHECKING:
    from vexport.bench.clock import Clock
    from vexport.bench.report import BenchReport, Case
    from vexport.engine.runtime import RuntimeName
    from vexport.run.runner import Runner

FULL_SIZE = (3, 224, 224)
BASELINE_NAMES = ("resnet50", "swin_tiny")


@dataclass(frozen=True)
class BenchOutcome:
    """A measurement and the file that holds it."""

    artifact: BenchResult
    report: BenchReport

    def to_json(self) -> dict[str, Any]:
        from vexport.bench.report import verdicts

        return {
            "path": str(self.artifact.path),
            "rows": [row.to_json() for row in self.report.rows],
            "verdicts": verdicts(self.report.rows),
            "environment": dict(self.report.environment),
            "settings": dict(self.report.settings),
        }


def measure_latency(
    artifacts: Sequence[Path] = (),
    *,
    workspace: Workspace,
    model: str | None = None,
    weights: Weights | None = None,
    batch: int = 1,
    threads: int | None = None,
    duration_s: float = 5.0,
    baselines: bool = True,
    eager: bool = True,
    force: bool = False,
    trust: bool = False,
    cuda_graph: bool = False,
    on_step: Callable[[str, float | None], None] = lambda _text, _share: None,
) -> BenchOutcome:
    """Time artifacts in turns and write the raw samples to `bench.json` in the workspace.

    Args:
        artifacts: Graphs, engines or checkpoints; none takes every FP32 graph of the workspace and the engines that
            this machine can run.
        workspace: Where graphs are found and the result goes.
        model: A network to export first.
        weights: `pretrained` or `random`, for `model`.
        batch: Images per call.
        threads: Threads to compute with; None leaves each backend's choice.
        duration_s: Measured time per candidate.
        baselines: Whether ResNet-50 and Swin-T stand beside full-size networks.
        eager: Whether eager PyTorch stands beside ONNX Runtime.
        force: Overwrite a `bench.json` that vexport did not write.
        trust: Open engines that vexport did not write.
        cuda_graph: Let engines replay their launches as CUDA graphs.
        on_step: Told what is going on, and the share that is done where it is known.

    Raises:
        InputError: there is nothing to measure, or an option makes no sense.
    """
    from vexport.bench.clock import Clock
    from vexport.bench.environment import describe_environment
    from vexport.bench.report import make_report

    require_model(model)
    if batch < 1:
        raise InputError(f"--batch {batch} is not positive", hint="give 1 or more")
    clock = Clock(duration_s=duration_s)
    if artifacts and (model or weights):
        raise InputError("files and --model exclude each other", hint="leave one of them out")
    paths = _subjects(artifacts, workspace, model, weights, batch, on_step)
    target = workspace.root / "bench.json"
    with ExitStack() as stack:
        candidates: list[tuple[Case, Runner]] = []
        for path in paths:
            # The network behind a graph may have been named itself.
            known = {(case.artifact_sha256, case.backend) for case, _ in candidates}
            opened = _open(path, workspace, batch, threads, eager, stack, trust=trust, cuda_graph=cuda_graph)
            candidates += [pair for pair in opened if (pair[0].artifact_sha256, pair[0].backend) not in known]
        if baselines and any(case.input_size == FULL_SIZE for case, _ in candidates):
            present = {case.network for case, _ in candidates}
            for name in (name for name in BASELINE_NAMES if name not in present):
                on_step(f"preparing {name}", None)
                graph = _baseline_graph(name, workspace)
                candidates += _open(graph, workspace, batch, threads, eager, stack)
        measured = _measure(candidates, clock, on_step)
        settings = {**clock.settings(), "batch": batch, "threads": threads, "runners": _describe(candidates)}
        report = make_report(measured, environment=describe_environment(), settings=settings)
    facts = {"rows": [row.to_json() for row in report.rows]}
    options = {"batch": batch, "threads": threads, "duration_s": duration_s, "cuda_graph": cuda_graph}
    with stage(target, force=force) as staging:
        staging.path.write_text(json.dumps(report.to_json()) + "\n", encoding="utf-8")
        artifact = staging.publish(
            BenchResult,
            lambda sha256, size: Manifest(
                "bench", sha256, size, None, options, facts, versions=tool_versions("torch", "onnxruntime")
            ),
        )
    return BenchOutcome(artifact, report)


def _subjects(
    artifacts: Sequence[Path],
    workspace: Workspace,
    model: str | None,
    weights: Weights | None,
    batch: int,
    on_step: Callable[[str, float | None], None],
) -> list[Path]:
    """The files to measure."""
    if artifacts:
        return list(artifacts)
    if model is not None:
        on_step(f"exporting {model}", None)
        if weights is None:
            known = workspace.newest(Graph, lambda graph: graph.model == model and graph.precision == "fp32")
            if known is not None:
                return [known.path]
        return [export_graph(workspace=workspace, model=model, weights=weights).artifact.path]
    found = []
    for beside in sorted(workspace.root.glob("*.json")) if workspace.root.is_dir() else ():
        artifact = load_artifact(beside.with_suffix(""))
        if artifact is not None and artifact.model in VARIANTS and _is_measurable(artifact, batch):
            found.append(artifact.path)
    if not found:
        raise InputError(
            f"there is no VanillaNet graph for batch {batch} in {workspace.root} to measure",
            hint="make one: vexport onnx --model vanillanet_9 --weights random",
        )
    return found


def _is_measurable(artifact: Artifact, batch: int) -> bool:
    """FP32 graphs, since CPUs have no FP16 kernels to speak of, and the engines that this machine can run."""
    if isinstance(artifact, Graph):
        return artifact.precision == "fp32" and artifact.facts["batch"] in (None, batch)
    if not isinstance(artifact, Engine):
        return False
    from vexport.engine.plan import why_not_here
    from vexport.engine.target import find_devices

    devices = find_devices()
    if not devices:
        return False
    from importlib.util import find_spec

    from vexport.engine.runtime import MODULES, describe_runtime

    least, most = (artifact.facts["profile"][key][0] for key in ("min", "max"))
    name: RuntimeName = artifact.facts["runtime"]["name"]
    here = find_spec(MODULES[name]) is not None and not why_not_here(
        artifact.manifest, describe_runtime(name).version, devices
    )
    return bool(here and least <= batch <= most)


def _baseline_graph(name: str, workspace: Workspace) -> Path:
    """A baseline's graph; random weights serve, since latency does not depend on their values."""
    known = workspace.newest(
        Graph, lambda graph: graph.path.name == f"{name}.random.onnx" and graph.facts["batch"] is None
    )
    if known is not None:
        return known.path
    return export_graph(workspace=workspace, model=name, weights="random").artifact.path


def _open(
    path: Path,
    workspace: Workspace,
    batch: int,
    threads: int | None,
    eager: bool,
    stack: ExitStack,
    *,
    trust: bool = False,
    cuda_graph: bool = False,
) -> list[tuple[Case, Runner]]:
    """The runners of one artifact: the backend that runs it, and eager PyTorch beside a graph."""
    from vexport.run import open_runner

    runner = stack.enter_context(open_runner(path, threads=threads, trust=trust, cuda_graph=cuda_graph))
    runners = [(runner, hash_file(path))]
    manifest = read_manifest(path)
    if eager and path.suffix == ".onnx" and manifest is not None:
        beside = _eager(path, workspace, threads)
        if beside is not None:
            runners.append((stack.enter_context(beside[0]), beside[1]))
    return [(_case(path, found, sha256, batch), found) for found, sha256 in runners]


def _eager(graph: Path, workspace: Workspace, threads: int | None) -> tuple[Runner, str] | None:
    """PyTorch on the network that a graph was made from, and its hash; None where it is not at hand."""
    from vexport.run import open_runner
    from vexport.run.pytorch import TorchRunner

    manifest = read_manifest(graph)
    if manifest is None or manifest.parent is None:
        return None
    model, parent = manifest.facts["model"], manifest.parent
    if model not in VARIANTS:
        from vexport.model.baselines import create_baseline

        size = manifest.facts["preprocessing"]["input_size"]
        return TorchRunner(create_baseline(model), tuple(size), name=graph.stem, threads=threads), parent.sha256
    beside = workspace.newest(Checkpoint, lambda found: found.sha256 == parent.sha256)
    return (open_runner(beside.path, threads=threads), parent.sha256) if beside is not None else None


def _case(path: Path, runner: Runner, sha256: str, batch: int) -> Case:
    from vexport.bench.report import Case
    from vexport.model.baselines import BASELINES

    manifest = read_manifest(path)
    model = str(manifest.facts.get("model")) if manifest else ""
    size = tuple(side or 224 for side in runner.input_shape[1:])
    if runner.input_shape[0] not in (None, batch):
        raise InputError(
            f"{path} has a fixed batch of {runner.input_shape[0]}", hint=f"--batch {runner.input_shape[0]}"
        )
    published: Published | None = None
    if model in VARIANTS and manifest is not None and _is_published_size(manifest.facts, model):
        published = VARIANTS[model].published
    elif model in BASELINES:
        published = BASELINES[model].published
    in_pytorch = runner.backend.startswith("pytorch")
    return Case(
        network=path.name.removesuffix(".onnx")
        .removesuffix(".engine")
        .removesuffix(".safetensors")
        .removesuffix(".deploy")
        .removesuffix(".random"),
        backend=runner.backend,
        precision=str(manifest.facts.get("precision", "fp32")).upper() if manifest else "FP32",
        batch=batch,
        input_size=(size[0], size[1], size[2]),
        artifact_sha256=sha256,
        published_top1=published.top1 if published else None,
        published_a100_ms=published.a100_pytorch_ms if published and in_pytorch else None,
    )


def _is_published_size(facts: dict[str, Any], model: str) -> bool:
    network = facts.get("network", {})
    return tuple(network.get("dims", ())) == VARIANTS[model].dims and network.get("num_classes") == 1000


def _measure(
    candidates: list[tuple[Case, Runner]], clock: Clock, on_step: Callable[[str, float | None], None]
) -> list[tuple[Case, Any]]:
    from vexport.run.compare import random_batches

    inputs = {case.input_size: random_batches(case.input_size, (case.batch,))[0] for case, _ in candidates}

    def call(case: Case, runner: Runner) -> Callable[[], object]:
        images = inputs[case.input_size]
        return lambda: runner(images)

    named = {f"{i} {case.network}, {case.backend}": call(case, runner) for i, (case, runner) in enumerate(candidates)}
    samples = clock.measure(
        named, progress=lambda name, done, total: on_step(f"timing {name.partition(' ')[2]}", done / total)
    )
    return [(case, found) for (case, _), found in zip(candidates, samples.values(), strict=True)]


def _describe(candidates: list[tuple[Case, Runner]]) -> dict[str, Any]:
    return {f"{case.network}, {case.backend}": runner.describe() for case, runner in candidates}
