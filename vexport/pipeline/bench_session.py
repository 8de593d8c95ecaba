"""One benchmark from its cells to its document: make, measure, hold against accuracy and the device, write."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vexport.artifacts import BenchResult, Manifest
from vexport.bench.clock import Clock
from vexport.bench.report import BenchReport
from vexport.bench.worker import Timeouts, run_alone
from vexport.deps import tool_versions
from vexport.errors import VexportError
from vexport.pipeline.bench_artifacts import Artifacts
from vexport.pipeline.bench_document import Found, make_document
from vexport.pipeline.bench_matrix import Cell, make_cell, split_large, why_not_here
from vexport.pipeline.bench_run import (
    ISOLATION,
    ONE_PROCESS,
    Estimate,
    GroupStore,
    OnStep,
    Result,
    describe_error,
    group_key,
    measure_group,
    not_run,
)
from vexport.workspace import Workspace, require_clear, stage

PEAKS_S, PROFILE_S = 600.0, 300.0  # until they count as hung


@dataclass(frozen=True)
class Session:
    """A benchmark to do.

    Args:
        name: Of its folder in the workspace.
        target: The document's file.
        workspace: Where artifacts are found and made.
        clock: How each cell is measured.
        baseline: The network that ratios refer to.
        timeouts: When a process counts as hung.
        threads: Of each cell; None leaves the backend's choice.
        own_processes: Whether each cell runs in a process of its own.
        resume: Take the groups that an interrupted benchmark of that name left.
        max_open: Cells that are held open at once at the most.
        roofline: Whether to hold graphs on the CPU against what it could do.
        data: Images by class, for the accuracy.
        limit: How many of them.
        recipe: As resolved, for the document.
        published: Networks that are shown by their published figures alone.
        command: That was given.
        report: Folder for the report; None writes none.
        force: Overwrite files that vexport did not write.
        on_step: Told what is going on, and the share that is done where it is known.
        tell: Told what is worth a line.
    """

    name: str
    target: Path
    workspace: Workspace
    clock: Clock
    baseline: str = "resnet50"
    timeouts: Timeouts = field(default_factory=Timeouts)
    threads: int | None = None
    own_processes: bool = True
    resume: bool = False
    max_open: int = 64
    roofline: bool = False
    data: Path | None = None
    limit: int | None = None
    recipe: Mapping[str, Any] | None = None
    published: Sequence[str] = ()
    command: str = "vexport bench"
    report: Path | None = None
    force: bool = False
    on_step: OnStep = lambda _text, _share: None
    tell: Callable[[str], None] = lambda _line: None


@dataclass(frozen=True)
class BenchOutcome:
    """A measurement and the file that holds it.

    Args:
        artifact: The document's file.
        report: Rows and samples.
        document: The document, of schema 2.
        files: Of the report, the page first.
    """

    artifact: BenchResult
    report: BenchReport
    document: Mapping[str, Any]
    files: tuple[Path, ...] = ()

    @property
    def verdicts(self) -> list[str]:
        """Of all groups."""
        return [said for group in self.document["groups"] for said in group["verdicts"]]

    def to_json(self) -> dict[str, Any]:
        """All but the raw samples and the layers, which the file has."""
        left_out = ("samples_ns", "roofline")
        groups = [
            {**group, "rows": [{k: v for k, v in row.items() if k not in left_out} for row in group["rows"]]}
            for group in self.document["groups"]
        ]
        return {
            **{key: value for key, value in self.document.items() if key not in ("groups", "peaks")},
            "path": str(self.artifact.path),
            "report": [str(path) for path in self.files],
            "rows": [row.to_json() for row in self.report.rows],
            "verdicts": self.verdicts,
            "groups": groups,
        }


def run_session(session: Session, planned: Sequence[Sequence[Cell]]) -> BenchOutcome:
    """Do a benchmark.

    Args:
        session: What to do.
        planned: Groups of cells, made or to be made.

    Raises:
        KeyboardInterrupt: Ctrl-C; the document of what is there has been written, and `tell` told how to go on.
        VexportError: see the tree in errors.py.
    """
    require_clear(session.target, force=session.force)
    store = GroupStore(session.workspace.root / "bench" / session.name) if session.own_processes else None
    if store is not None:
        store.require_writable()
        if not session.resume:
            store.clear()
    groups = _make(session, planned)

    from vexport.bench.environment import describe_environment

    environment = describe_environment()
    found: list[list[Result]] = []
    extras: dict[str, Any] = {}
    complete = False
    try:
        _measure(session, groups, environment, store, found)
        extras = _extras(session, found)
        complete = True
    except KeyboardInterrupt:
        if store is None or not found:
            raise
    document, report = make_document(
        Found(
            found,
            environment,
            _settings(session),
            session.command,
            recipe=session.recipe,
            complete=complete,
            published=session.published,
            **extras,
        )
    )
    artifact = _write(session, document)
    if not complete:
        _tell_how_to_go_on(session, len(found), len(groups))
        raise KeyboardInterrupt
    files = _write_report(session, document)
    if store is not None:
        store.clear()
    return BenchOutcome(artifact, report, document, files)


def _make(session: Session, planned: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """Groups with what their cells open, or the reason why they do not run."""
    artifacts = Artifacts(session.workspace, session.on_step)
    reasons: dict[str, str | None] = {}
    groups: list[list[Cell]] = []
    for cells in planned:
        backend = cells[0].backend
        if backend not in reasons:
            reasons[backend] = why_not_here(backend)
            if reasons[backend]:
                session.tell(f"{backend} is not run: {reasons[backend]}")
        reason = reasons[backend]
        if reason is not None:
            made = [replace(cell, opener=None, why_not=reason) for cell in cells]
        else:
            made = [make_cell(cell, artifacts, session.threads) if cell.made is None else cell for cell in cells]
            for cell in made:
                if cell.why_not:
                    session.tell(f"{cell.network}, {backend} {cell.precision.upper()}: {cell.why_not}")
        groups += split_large(made, session.max_open, session.baseline)
    return groups


def _measure(
    session: Session,
    groups: Sequence[Sequence[Cell]],
    environment: Mapping[str, Any],
    store: GroupStore | None,
    found: list[list[Result]],
) -> None:
    """Measure group by group into `found`."""
    clock = session.clock
    running = [sum(cell.opener is not None for cell in cells) for cells in groups]
    estimate = Estimate([(n, cells[0].on_gpu) for n, cells in zip(running, groups, strict=True)], clock)
    shaping = {**_clock_numbers(clock), "threads": session.threads, "own_processes": session.own_processes}
    counted = f"{_count(sum(running), 'cell')} in {_count(len(groups), 'group')}"
    session.tell(f"{counted}: about {_about(estimate.rest_s())} of measuring")
    for number, cells in enumerate(groups, start=1):
        key = group_key(cells, shaping, environment)
        stored = store.find(key, cells) if store is not None and session.resume else None
        if stored is not None or not running[number - 1]:
            found.append(stored or [not_run(cell, cell.why_not or "it is not there") for cell in cells])
            estimate.finish(None)
            continue

        def on_turn(text: str, share: float | None, which: int = number) -> None:
            within = share or 0.0
            left = f"group {which} of {len(groups)}, about {_about(estimate.rest_s(within))} left"
            session.on_step(f"{text} ({left})", estimate.share(within))

        begun = time.monotonic()
        results = measure_group(
            cells, clock, timeouts=session.timeouts, own_processes=session.own_processes, on_turn=on_turn
        )
        found.append(results)
        if store is not None:
            store.save(key, results)
        estimate.finish(time.monotonic() - begun)
        _tell_group(session, results, number, len(groups), estimate)


def _tell_group(session: Session, results: Sequence[Result], number: int, total: int, estimate: Estimate) -> None:
    cell = results[0].cell
    failed = [one for one in results if one.samples.error is not None and one.cell.opener is not None]
    said = f"group {number} of {total} done: {cell.backend} {cell.precision.upper()}, batch {cell.batch}"
    if number < total:
        said += f"; about {_about(estimate.rest_s())} left"
    session.tell(said)
    for one in failed:
        session.tell(f"  {one.cell.network}: {one.samples.error}")


def _extras(session: Session, found: Sequence[Sequence[Result]]) -> dict[str, Any]:
    """Accuracy and rooflines."""
    results = [one for group in found for one in group if one.measured]
    extras: dict[str, Any] = {}
    if session.data is not None:
        extras["accuracies"] = _evaluate(session, results)
    if session.roofline:
        extras |= _rooflines(session, results)
    return extras


def _evaluate(session: Session, results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Accuracy of each measured artifact with trained weights, by hash."""
    from vexport.pipeline.evaluate import evaluate

    assert session.data is not None, "it is asked for"
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        made = result.cell.made
        if made is None or made.path is None or made.weights == "random" or made.sha256 in found:
            continue
        session.on_step(f"answering the images of {session.data} with {made.name}", None)
        try:
            score = evaluate(
                made.path, session.data, limit=session.limit, threads=session.threads, trust=result.cell.trusted
            ).subject.score
        except VexportError as error:
            session.tell(f"{made.name} has no accuracy: {describe_error(error)}")
            continue
        found[made.sha256] = {
            "top1_percent": score.top1_percent,
            "source": "measured",
            "images": score.images,
            "data": str(session.data),
        }
    return found


def _rooflines(session: Session, results: Sequence[Result]) -> dict[str, Any]:
    """Graphs on the CPU against what it could do, measured now; the profiler runs in a process of its own."""
    from vexport.bench.cell import MeasurePeaks, ProfileGraph
    from vexport.bench.peak import CPU_PRECISIONS
    from vexport.bench.roofline import make_roofline
    from vexport.graph.fused import GraphCost, count_fused
    from vexport.graph.inspect import read_graph

    costs: dict[tuple[object, ...], tuple[Result, GraphCost, Any]] = {}
    for result in results:
        cell = result.cell
        path = cell.made.path if cell.made else None
        if cell.on_gpu or path is None or path.suffix.lower() != ".onnx":
            continue
        session.on_step(f"profiling {cell.network}, {cell.precision.upper()}", None)
        graph, size = read_graph(path, with_weights=False), cell.input_size[1:]
        try:
            cost, times = count_fused(graph, batch=cell.batch, size=size), None
            if cell.backend == "onnxruntime":
                work = ProfileGraph(path, cell.batch, cell.input_size, dict(cost.labels), session.threads)
                times, _ = run_alone(f"profile {cell.network}", work, PROFILE_S)
            if times is not None and times.together:
                cost = count_fused(graph, batch=cell.batch, size=size, together=times.together)
        except VexportError as error:
            session.tell(f"{cell.network} has no roofline: {describe_error(error)}")
            continue
        costs[(*cell.group, cell.name)] = (result, cost, times)
    needed = {"int8" if name == "uint8" else name for _, cost, _ in costs.values() for name in cost.precisions}
    wanted = tuple(name for name in CPU_PRECISIONS if name in needed)
    if not wanted:
        return {}
    session.on_step("measuring what the processor could do", None)
    peaks, failure = run_alone("peaks", MeasurePeaks(wanted, session.threads), PEAKS_S)
    if peaks is None:
        session.tell(f"no rooflines: {failure.text if failure else 'nothing was measured'}")
        return {}
    rooflines = {}
    for key, (result, cost, times) in costs.items():
        try:
            rooflines[key] = make_roofline(
                result.cell.network, cost, peaks, measured_ms=result.samples.median_ms, times=times
            )
        except VexportError as error:
            session.tell(f"{result.cell.network} has no roofline: {describe_error(error)}")
    return {"peaks": peaks, "rooflines": rooflines}


def _settings(session: Session) -> dict[str, Any]:
    return {
        **session.clock.settings(),
        "threads": session.threads,
        "isolation": ISOLATION if session.own_processes else ONE_PROCESS,
        "own_processes": session.own_processes,
        "depth": "layers with weights; VanillaNet's as its authors count, without the series activations",
    }


def _clock_numbers(clock: Clock) -> dict[str, float | int]:
    names = ("warmup_s", "warmup_most_s", "warmup_bound", "settle_s", "duration_s", "least_count", "rounds", "seed")
    return {name: getattr(clock, name) for name in names}


def _write(session: Session, document: Mapping[str, Any]) -> BenchResult:
    rows = [row for group in document["groups"] for row in group["rows"]]
    facts = {
        "complete": document["complete"],
        "rows": [{key: row[key] for key in ("network", "backend", "precision", "median_ms")} for row in rows],
    }
    options = {"name": session.name, "threads": session.threads, **_clock_numbers(session.clock)}
    versions = tool_versions("torch", "onnxruntime")
    session.on_step("writing", None)
    with stage(session.target, force=session.force) as staging:
        staging.path.write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")
        return staging.publish(
            BenchResult, lambda sha256, size: Manifest("bench", sha256, size, None, options, facts, versions=versions)
        )


def _write_report(session: Session, document: Mapping[str, Any]) -> tuple[Path, ...]:
    if session.report is None:
        return ()
    from vexport.bench.page import write_report

    session.on_step("writing the report", None)
    return tuple(write_report(document, session.report, force=session.force))


def _tell_how_to_go_on(session: Session, done: int, total: int) -> None:
    words = shlex.split(session.command)
    again = session.command if "--resume" in words else f"{session.command} --resume"
    session.tell(f"interrupted: {done} of {total} groups are in {session.target}; go on with: {again}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _about(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{seconds / 60:.0f} min"
