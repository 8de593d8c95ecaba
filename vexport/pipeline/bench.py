"""`vexport bench`: the networks of a recipe, or files that are named, beside the baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vexport.artifacts import Artifact, Engine, Graph
from vexport.errors import InputError
from vexport.model.variants import VARIANTS
from vexport.pipeline.bench_alone import Apart
from vexport.pipeline.bench_files import FULL_SIZE, cells_of_file, group_cells
from vexport.pipeline.bench_matrix import OFFERS, Cell, plan_groups, planned_tf32
from vexport.pipeline.bench_session import BenchOutcome, run_session
from vexport.pipeline.bench_settings import Session
from vexport.pipeline.export import export_graph
from vexport.pipeline.resolve import Weights, model_names, require_model
from vexport.workspace import Workspace, load_artifact

if TYPE_CHECKING:
    from vexport.engine.runtime import RuntimeName
    from vexport.recipe.bench import BenchRecipe

__all__ = ["BenchOutcome", "load_recipe", "measure_latency", "measure_recipe"]

BASELINE_NAMES = ("resnet50", "swin_tiny")
OnStep = Callable[[str, float | None], None]
Tell = Callable[[str], None]


def _silent(_text: str, _share: float | None) -> None:
    """Tells nobody."""


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
    own_processes: bool = False,
    resume: bool = False,
    roofline: bool = False,
    data: Path | None = None,
    output: Path | None = None,
    report: Path | None = None,
    command: str = "vexport bench",
    on_step: OnStep = _silent,
    tell: Tell = lambda _line: None,
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
        own_processes: Run each candidate in a process of its own. A script that asks for it guards its main part with
            `if __name__ == "__main__"`, as multiprocessing demands.
        resume: Go on from what an interrupted measurement left; needs `own_processes`.
        roofline: Hold what is measured against what its device could do.
        data: A folder with one subfolder of images per class, for the accuracy of trained artifacts.
        output: The document's file, in place of `bench.json` in the workspace.
        report: A folder for the report; None writes none.
        command: That was given, for the document.
        on_step: Told what is going on, and the share that is done where it is known.
        tell: Told what is worth a line.

    Raises:
        InputError: there is nothing to measure, or an option makes no sense.
        KeyboardInterrupt: Ctrl-C; with `own_processes` the finished groups have been written.
    """
    from vexport.bench.clock import Clock

    require_model(model)
    if batch < 1:
        raise InputError(f"--batch {batch} is not positive", hint="give 1 or more")
    clock = Clock(duration_s=duration_s)
    if artifacts and (model or weights):
        raise InputError("files and --model exclude each other", hint="leave one of them out")
    session = Session(
        "files",
        output or workspace.root / "bench.json",
        workspace,
        clock,
        threads=threads,
        own_processes=own_processes,
        resume=resume,
        roofline=roofline,
        data=data,
        command=command,
        report=report,
        force=force,
        on_step=on_step,
        tell=tell,
    )
    _require_options(session)
    cells: list[Cell] = []
    for path in _subjects(artifacts, workspace, model, weights, batch, on_step):
        on_step(f"opening {path.name}", None)
        # One process for each: TensorRT's two kinds do not go together in one.
        with Apart("files", own_process=own_processes) as apart:
            made = cells_of_file(
                path, workspace, batch, threads, eager=eager, trust=trust, cuda_graph=cuda_graph, apart=apart
            )
        # The network behind a graph may have been named itself.
        known = {(cell.backend, cell.made.sha256) for cell in cells if cell.made}
        cells += [cell for cell in made if cell.made and (cell.backend, cell.made.sha256) not in known]
    # Baselines are built as the engines that they stand beside: with TF32 where any of those has it.
    session = replace(session, engine_tf32=any(cell.made.tf32 for cell in cells if cell.made))
    if baselines:
        cells += _baselines(cells, batch, session.engine_tf32)
    return run_session(session, group_cells(cells))


def measure_recipe(
    recipe: BenchRecipe,
    artifacts: Sequence[Path] = (),
    *,
    workspace: Workspace,
    resume: bool = False,
    data: Path | None = None,
    output: Path | None = None,
    report: Path | None = None,
    trust: bool = False,
    force: bool = False,
    command: str = "vexport bench",
    on_step: OnStep = _silent,
    tell: Tell = lambda _line: None,
) -> BenchOutcome:
    """Measure every cell of a recipe, each in its own process, and write the document.

    Args:
        recipe: From `load_recipe`.
        artifacts: Files that stand beside its networks, each with the backends of the recipe that take it.
        workspace: Where artifacts are found and made; the document goes to `bench/<name>/bench.json` in it.
        resume: Go on from what an interrupted measurement of that name left.
        data: Images by class, in place of the recipe's.
        output: The document's file.
        report: A folder for the report; None writes none.
        trust: Open engines that vexport did not write.
        force: Overwrite files that vexport did not write.
        command: That was given, for the document.
        on_step: Told what is going on, and the share that is done where it is known.
        tell: Told what is worth a line.

    Raises:
        InputError: there is nothing to measure.
        KeyboardInterrupt: Ctrl-C; the finished groups have been written.
    """
    from vexport.bench.clock import Clock
    from vexport.bench.worker import Timeouts

    session = Session(
        recipe.name,
        output or workspace.root / "bench" / recipe.name / "bench.json",
        workspace,
        Clock(**recipe.clock.model_dump()),
        timeouts=Timeouts(**recipe.timeouts.model_dump(exclude={"make_s"})),
        make_s=recipe.timeouts.make_s,
        threads=recipe.threads,
        resume=resume,
        max_open=recipe.max_open,
        roofline=recipe.roofline,
        tf32=recipe.tf32,
        engine_tf32=recipe.tf32,
        cuda_graph=recipe.cuda_graph,
        data=data or (Path(recipe.data) if recipe.data else None),
        limit=recipe.limit,
        recipe=recipe.to_json(),
        published=recipe.published,
        command=command,
        report=report,
        force=force,
        on_step=on_step,
        tell=tell,
    )
    _require_options(session)
    named: list[Cell] = []
    for path in artifacts:
        on_step(f"opening {path.name}", None)
        with Apart("files") as apart:
            for batch in recipe.batches:
                named += cells_of_file(
                    path,
                    workspace,
                    batch,
                    recipe.threads,
                    eager=False,
                    trust=trust,
                    cuda_graph=recipe.cuda_graph,
                    backends=recipe.backends,
                    apart=apart,
                )
    groups = group_cells([cell for cells in plan_groups(recipe) for cell in cells] + named)
    if not groups:
        raise InputError(
            f"the recipe {recipe.name} has nothing to measure",
            hint="its networks need a backend that offers one of its precisions",
        )
    return run_session(session, groups)


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> BenchRecipe:
    """Read a benchmark recipe, shipped or of a path.

    Args:
        name_or_path: Which.
        overrides: `field=value`.

    Raises:
        RecipeError: there is none, or it has errors; each is a line of `details`.
    """
    from vexport.model.baselines import FIGURES_ONLY
    from vexport.recipe.bench import load_bench_recipe
    from vexport.run.backends import BACKENDS

    return load_bench_recipe(
        name_or_path, overrides, networks=model_names(), backends=list(BACKENDS), published=list(FIGURES_ONLY)
    )


def _require_options(session: Session) -> None:
    from vexport.run.labels import read_class_folders
    from vexport.run.runner import require_threads

    require_threads(session.threads)
    if session.target.suffix != ".json":
        raise InputError(f"{session.target} does not end in .json", hint="name it so")
    if session.data is not None:
        read_class_folders(session.data)  # refuses before the work what would fail after it


def _baselines(cells: Sequence[Cell], batch: int, engine_tf32: bool) -> list[Cell]:
    """Baselines beside full-size networks, in each group that has one."""
    present = {(cell.network, cell.backend, cell.precision) for cell in cells}
    beside = dict.fromkeys((cell.backend, cell.precision) for cell in cells if cell.input_size == FULL_SIZE)
    return [
        Cell(
            name, backend, precision, batch, FULL_SIZE, model=name, is_published=True,
            tf32=planned_tf32(backend, precision, engine_tf32),
        )
        for name in BASELINE_NAMES
        for backend, precision in beside
        if precision in OFFERS[backend] and (name, backend, precision) not in present
    ]  # fmt: skip


def _subjects(
    artifacts: Sequence[Path],
    workspace: Workspace,
    model: str | None,
    weights: Weights | None,
    batch: int,
    on_step: OnStep,
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
    from vexport.engine.runtime import MODULES, describe_runtime
    from vexport.engine.target import find_devices

    devices = find_devices()
    if not devices:
        return False
    least, most = (artifact.facts["profile"][key][0] for key in ("min", "max"))
    name: RuntimeName = artifact.facts["runtime"]["name"]
    here = find_spec(MODULES[name]) is not None and not why_not_here(
        artifact.manifest, describe_runtime(name).version, devices
    )
    return bool(here and least <= batch <= most)
