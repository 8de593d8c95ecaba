"""One benchmark from its cells to its document: make, measure, hold against accuracy and the device, write."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vexport.artifacts import BenchResult, Manifest
from vexport.bench.report import BenchReport
from vexport.bench.scheduler import REST_S
from vexport.deps import tool_versions
from vexport.errors import EngineError, VexportError, WorkspaceError
from vexport.pipeline.bench_accuracy import Answered, accuracy_key, measure_accuracies
from vexport.pipeline.bench_document import Found, make_document
from vexport.pipeline.bench_make import Maker
from vexport.pipeline.bench_matrix import Cell
from vexport.pipeline.bench_measure import Progress, clock_numbers, count, make_groups, measure_groups
from vexport.pipeline.bench_roofline import measure_rooflines
from vexport.pipeline.bench_run import ISOLATION, ONE_PROCESS, GroupStore, Result
from vexport.pipeline.bench_settings import Session
from vexport.pipeline.bench_tf32 import tf32_as_asked
from vexport.workspace import manifest_path, mapped_os_errors, read_manifest, require_clear, stage


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
        KeyboardInterrupt: Ctrl-C; what is there has been written where there is any, and `tell` told how to go on.
        EngineError: the GPU went away; likewise.
        VexportError: see the tree in errors.py.
    """
    for path in (session.target, session.partial):
        require_clear(path, force=session.force)
    store = None
    if session.own_processes:
        store = GroupStore(session.workspace.root / "bench" / session.name, resume=session.resume)
        store.require_writable()
        if not session.resume and (left := store.count):
            session.tell(f"an earlier run left {count(left, 'group')}: measured anew, since --resume was not given")
    progress = Progress()
    maker = Maker(
        session.workspace,
        session.on_step,
        own_process=session.own_processes,
        timeout_s=session.make_s,
        tf32=session.engine_tf32,
    )
    with tf32_as_asked(session.tf32), closing(maker):
        try:
            groups = make_groups(session, planned, maker)
        except KeyboardInterrupt:
            session.tell("interrupted: what was made so far stays, and the same command goes on from there")
            raise
        environment = _environment()
        try:
            measure_groups(session, groups, environment, store, progress, maker)
            _add_extras(session, progress)
        except KeyboardInterrupt:
            if store is None or not progress.found:
                raise
            progress.interrupted = True
        except WorkspaceError:
            _tell_how_to_go_on(session, store)
            raise
        return _finish(session, progress, environment, store, len(groups))


def _environment() -> dict[str, Any]:
    from vexport.bench.environment import describe_environment

    return describe_environment()


def _finish(
    session: Session, progress: Progress, environment: Mapping[str, Any], store: GroupStore | None, total: int
) -> BenchOutcome:
    """Write what there is; raise where it is not all, and then leave the document of an earlier run as it is."""
    complete = not progress.interrupted and progress.gone is None
    document, report = make_document(
        Found(
            progress.found,
            environment,
            _settings(session),
            session.command,
            recipe=session.recipe,
            complete=complete,
            accuracies=progress.accuracies,
            peaks=progress.rooflines.main_peaks,
            rooflines=progress.rooflines.by_cell,
            published=session.published,
        )
    )
    target = session.target if complete else session.partial
    try:
        artifact = _write(session, document, target)
    except VexportError:
        _tell_how_to_go_on(session, store)
        raise
    if complete:
        _drop_partial(session)
    if progress.interrupted:
        done = f"{len(progress.found)} of {count(total, 'group')}"
        session.tell(f"interrupted: {done} are in {target}; go on with: {session.again}")
        raise KeyboardInterrupt
    if progress.gone is not None:
        measured = sum(any(one.measured for one in group) for group in progress.found)
        raise EngineError(
            f"the GPU went away: {progress.gone}",
            details=[f"{measured} of {count(total, 'group')} are in {target}"],
            hint=f"when `nvidia-smi` lists it again, go on with: {session.again}" if store else "run it again",
        )
    try:
        files = _write_report(session, document)
    except (KeyboardInterrupt, VexportError):
        again = shlex.join(["vexport", "bench", str(session.target), "--report", str(session.report)])
        session.tell(f"the result is in {session.target}, its report is not written; write it with: {again}")
        raise
    _forget(session, progress.found, store)
    return BenchOutcome(artifact, report, document, files)


def _drop_partial(session: Session) -> None:
    """A complete document has all that an interrupted run left beside it."""
    if read_manifest(session.partial) is not None:  # else it is somebody else's, and --force was given
        for path in (session.partial, manifest_path(session.partial)):
            with mapped_os_errors(path):
                path.unlink(missing_ok=True)


def _forget(session: Session, found: Sequence[Sequence[Result]], store: GroupStore | None) -> None:
    """A finished benchmark leaves nothing to go on from, unless cells failed."""
    if store is None:
        return
    failed = sum(one.failed for group in found for one in group)
    if not failed:
        store.clear()
        return
    session.tell(f"{count(failed, 'cell')} failed; to measure {'its' if failed == 1 else 'their'} groups again: "
                 f"{session.again}")  # fmt: skip


def _add_extras(session: Session, progress: Progress) -> None:
    """Accuracy and rooflines."""
    results = [
        one
        for group in progress.found
        for one in group
        if one.measured and (progress.gone is None or not one.cell.on_gpu)
    ]
    if session.data is not None:
        for cell in (one.cell for group in progress.found for one in group if one.measured):
            key = accuracy_key(cell)
            trained = cell.made is not None and cell.made.path is not None and cell.made.weights != "random"
            if progress.gone is not None and cell.on_gpu and trained and key is not None:
                progress.accuracies.setdefault(key, Answered(None, f"the GPU does not answer: {progress.gone}"))
        measure_accuracies(
            results,
            progress.accuracies,
            data=session.data,
            limit=session.limit,
            threads=session.threads,
            own_process=session.own_processes,
            on_step=session.on_step,
            tell=session.tell,
        )
    if session.roofline:
        measure_rooflines(
            results,
            progress.rooflines,
            threads=session.threads,
            own_process=session.own_processes,
            on_step=session.on_step,
            tell=session.tell,
        )


def _settings(session: Session) -> dict[str, Any]:
    return {
        **session.clock.settings(),
        "rest_s": REST_S,
        "threads": session.threads,
        "isolation": ISOLATION if session.own_processes else ONE_PROCESS,
        "own_processes": session.own_processes,
        "depth": "layers with weights on the longest path, without gates and series activations",
    }


def _write(session: Session, document: Mapping[str, Any], target: Path) -> BenchResult:
    rows = [row for group in document["groups"] for row in group["rows"]]
    facts = {
        "complete": document["complete"],
        "rows": [{key: row[key] for key in ("network", "backend", "precision", "median_ms")} for row in rows],
    }
    options = {"name": session.name, "threads": session.threads, **clock_numbers(session.clock)}
    versions = tool_versions("torch", "onnxruntime")
    session.on_step("writing", None)
    with stage(target, force=session.force) as staging:
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


def _tell_how_to_go_on(session: Session, store: GroupStore | None) -> None:
    if store is not None and store.count:
        session.tell(f"{count(store.count, 'group')} are kept; when that is mended, go on with: {session.again}")
