"""An ablation: train what its recipe names with every seed, deploy it, and tell what makes a difference.

Everything lies in `ablation/<name>/` of the workspace, each run in a folder of its own. Runs that finished are kept
while their training recipe stays the same, those that an interrupt stopped go on after their last epoch.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vexport.bench.environment import usable_cores
from vexport.errors import InputError, TrainingError, VexportError, WorkspaceError
from vexport.pipeline.ablate_document import list_failures, make_document, require_own, write_document
from vexport.pipeline.ablate_ends import signals_end
from vexport.pipeline.ablate_kept import (
    RECIPE,
    Key,
    give_up,
    is_done,
    read_run,
    read_runs,
    require_same_recipes,
    run_folder,
    source_of,
    write_failure,
    write_figures,
)
from vexport.pipeline.ablate_process import OUTPUT, Failure, Running, Work, do_runs
from vexport.pipeline.ablate_progress import Progress
from vexport.pipeline.ablate_ready import require_images, require_networks, require_packages
from vexport.pipeline.ablate_run import Job, do_run
from vexport.pipeline.ablate_table import TableRow
from vexport.pipeline.epochs import duration
from vexport.recipe import ImagesSection, Recipe, recipe_hash
from vexport.recipe.ablation import FOLDER, Ablation, choose_runs, load_ablation, run_name
from vexport.workspace import Workspace, mapped_os_errors

LOCK = ".lock"
OnStep = Callable[[str, float | None], None]


@dataclass(frozen=True)
class AblationOutcome:
    """An ablation's figures and files.

    Args:
        document: As written to `ablation.json`.
        rows: Its table.
        files: That were written; `ablation.json` first.
        kept: Runs that were there already.
        trained: Runs that this call finished.
        failures: Chosen runs without figures, or without a graph where one was asked for, in words.
        again: How to try them again, in words.
    """

    document: Mapping[str, Any]
    rows: tuple[TableRow, ...]
    files: tuple[Path, ...]
    kept: int
    trained: int
    failures: tuple[str, ...]
    again: str = "the same command"

    def require_complete(self) -> None:
        """Raise where a chosen run failed.

        Raises:
            TrainingError: with every one.
        """
        if not self.failures:
            return
        count = f"{len(self.failures)} run{'s' if len(self.failures) > 1 else ''}"
        raise TrainingError(
            f"{count} failed" + ("; the table is of the others" if any(row.seeds for row in self.rows) else ""),
            details=self.failures,
            hint=f"what a run said stands in {OUTPUT} of its folder; {self.again} tries the failed ones again",
        )

    def to_json(self) -> dict[str, Any]:
        return {**self.document, "kept": self.kept, "trained": self.trained, "failures": list(self.failures)}


def run_ablation(
    name_or_path: str | Path,
    *,
    workspace: Workspace,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    runs: Sequence[str] = (),
    jobs: int = 1,
    export: bool = True,
    force: bool = False,
    command: str = "vexport ablate",
    on_step: OnStep = lambda _text, _share: None,
    on_epoch: Callable[[str], None] = lambda _line: None,
    tell: Callable[[str], None] = lambda _line: None,
    work: Work = do_run,
) -> AblationOutcome:
    """Train, deploy and compare the runs of an ablation, each in its own process.

    Args:
        name_or_path: A shipped ablation's name, or a path.
        workspace: Where everything goes, into `ablation/<name>/`.
        overrides: `section.field=value`, for the training recipe of every run.
        seeds: In place of the recipe's.
        runs: Do these only, by name or pattern (`alexnet_*`); all where none is named. The table has what is there of
            the others.
        jobs: Runs at once; they share the processor's cores.
        export: Whether to merge, export and evaluate each trained network.
        force: Train the chosen runs anew whatever there is, and write over files that vexport did not write.
        command: That was given, for the document.
        on_step: Told what is going on, and the share that is done where it is known.
        on_epoch: Told a line for each epoch that ended.
        tell: Told what is worth a line.
        work: What the process of a run does.

    Returns:
        The outcome; runs that failed stand in it.

    Raises:
        RecipeError: there is no such ablation, or it has errors.
        InputError: a run or a number does not fit, the images are missing, or a run of another recipe is in the way.
        MissingDependencyError: a package that training needs is not installed.
        TrainingError: the first runs fail, two of them for the same reason: the others would too.
        WorkspaceError: the folder cannot be written, or another process works in it. The runs that went on have ended.
        KeyboardInterrupt: Ctrl-C; the document holds what was finished.
        SystemExit: SIGTERM or SIGHUP, with 143 or 129; the document holds what was finished.
    """
    if jobs < 1:
        raise InputError(f"--jobs {jobs} is not positive", hint="give 1 or more")
    ablation = load_ablation(name_or_path, overrides, seeds=seeds, runs=runs)
    chosen = _choose(ablation, runs)
    plans = {key: ablation.plan(*key) for key in _keys(ablation)}
    require_networks(ablation.file, plans)
    folder = workspace.root / FOLDER / ablation.recipe.name
    with _locked(folder):
        require_own(folder, force=force, recipe=ablation.recipe)
        if not force:
            require_same_recipes(folder, plans, chosen)
        there = read_runs(folder, plans, export=export)
        results = there.results
        if not force:
            _require_whole_table([key for key in there.other_recipes if key not in chosen])
        todo = [key for key in chosen if force or not is_done(results.get(key), export)]
        for key in todo if force else ():
            results.pop(key, None)
        if todo:
            on_step("looking at the images", None)
            require_packages()
            require_images([plans[key] for key in todo])
        threads = max(1, (usable_cores() or os.cpu_count() or 1) // jobs)
        made = [_job(ablation, folder, key, plans[key], threads, export, force or key in there.anew) for key in todo]
        for job in made if force else ():
            give_up(job.folder, job.name, job.recipe_hash)
        for line in ablation.list_unreached():
            tell(f"note: {line}")
        kept = len(chosen) - len(todo)
        tell(_describe_plan(len(chosen), kept, jobs, folder))
        # With it, what this call finished would be trained once more.
        again = "the same command without --force" if force else "the same command"
        progress = Progress(made, _rows_of(ablation), jobs)
        session = _Session(plans, results, export, on_step, on_epoch, tell, progress)

        def write() -> tuple[dict[str, Any], list[TableRow], tuple[Path, ...]]:
            left_out = {key: source for key, source in there.elsewhere.items() if key not in results}
            document, rows = make_document(
                ablation,
                results,
                command=command,
                jobs=jobs,
                export=export,
                left_out=left_out,
                other_recipes=[key for key in there.other_recipes if key not in todo],
            )
            return document, rows, write_document(folder, document, rows)

        with signals_end():
            try:
                do_runs(made, work, at_once=jobs, patience_s=ablation.recipe.patience_s,
                        on_end=session.end, on_tick=session.tick)  # fmt: skip
                session.require_written()
            except (KeyboardInterrupt, SystemExit, VexportError) as stop:
                # First of all, and whatever becomes of it: what ends this may have taken the disk or the terminal.
                with contextlib.suppress(VexportError):
                    write()
                if not isinstance(stop, VexportError):
                    tell(f"{progress.done} of {len(made)} runs were done; {again} goes on with the others")
                raise
            document, table, files = write()
    names = {run_name(*key) for key in todo}  # the others have all that was asked for
    failures = [line for line in list_failures(table) if line.partition(": ")[0] in names]
    return AblationOutcome(document, tuple(table), files, kept, session.finished, tuple(failures), again)


@dataclass
class _Session:
    """What goes on while runs are done."""

    plans: Mapping[Key, Recipe]
    results: dict[Key, dict[str, Any]]
    export: bool
    on_step: OnStep
    on_epoch: Callable[[str], None]
    tell: Callable[[str], None]
    progress: Progress
    finished: int = 0
    unwritten: WorkspaceError | None = None
    failed: Counter[Failure] = field(default_factory=Counter)

    def end(self, job: Job, answer: dict[str, Any] | Failure, seconds: float) -> None:
        """Keep a run's figures, or why there are none."""
        failed = isinstance(answer, Failure)
        self.progress.end(job, seconds, failed=failed)
        if isinstance(answer, Failure):
            source = source_of(self.plans[job.run, job.seed])
            with self._going_on():
                write_failure(job.folder, job.recipe_hash, source, answer.to_json())
            # Its training may have come to an end, now or earlier: those figures stay.
            found = read_run(job.folder, job.name, job.recipe_hash, export=self.export) or {}
            failure = {} if is_done(found, self.export) else {"failure": answer.to_json(), "folder": str(job.folder)}
            self.results[job.run, job.seed] = {**found, **failure}
            top1 = found.get("top1")
            said = [answer.text if top1 is None else f"{top1:.2f} %, not deployed: {answer.text}", *answer.lines]
        else:
            result = {**answer, "recipe_hash": job.recipe_hash, "seconds": round(seconds, 1), "folder": str(job.folder)}
            self.results[job.run, job.seed] = result
            with self._going_on():
                write_figures(job.folder, result)
            self.finished += 1
            said = [_describe(result)]
        count = f"[{self.progress.done}/{self.progress.total}]"
        left = self.progress.left_s(())
        rest = f"; about {duration(left)} left" if left else ""
        self.tell(f"{count} {job.name}: {said[0]}, {duration(seconds)}{rest}")
        for line in said[1:]:
            self.tell(f"    {line.strip()}")
        if isinstance(answer, Failure):
            self._give_up_on(answer)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """A disk that is full costs no run that goes on: `require_written` tells of it in the end."""
        try:
            yield
        except WorkspaceError as error:
            self.tell(f"note: {error.message}")
            self.unwritten = self.unwritten or error

    def require_written(self) -> None:
        """Raise what kept figures from being written.

        Raises:
            WorkspaceError: the first that did.
        """
        if self.unwritten is not None:
            raise self.unwritten

    def _give_up_on(self, failure: Failure) -> None:
        """Raise a refusal that two runs met, where there is no figure of any: it is not a run's own.

        Raises:
            TrainingError: the failure.
        """
        self.failed[failure] += 1
        if failure.kind == "failed" and self.failed[failure] > 1 and not self._has_figures():
            hint = failure.hint or f"what a run said stands in {OUTPUT} of its folder"
            raise TrainingError(failure.text, details=failure.details, hint=hint)

    def _has_figures(self) -> bool:
        return any("top1" in result for result in self.results.values())

    def tick(self, running: Sequence[Running], waiting: int) -> None:
        """Tell how far the runs are."""
        done = f"{self.progress.done}/{self.progress.total}"
        left = self.progress.left_s(running)
        rest = f", about {duration(left)} left" if left else ""
        for one in running:
            for epoch, epochs, top1 in one.ended:
                self.on_epoch(f"{one.job.name} epoch {epoch}/{epochs}: {top1:.1f} %; {done} done{rest}")
            one.ended.clear()
        parts = [
            f"{one.job.name} {one.step or f'epoch {one.epochs[0]}/{one.epochs[1]}'}"
            for one in running[:3]
        ]  # fmt: skip
        # How long it takes is left to the bar.
        between = "starting the next" if waiting else "writing the table"
        self.on_step(f"{done} runs: {', '.join(parts) or between}", self.progress.share(running))


def _describe(result: Mapping[str, Any]) -> str:
    deployed = result["deployed"] or {}
    if "error" in deployed:
        graph = f", not deployed: {deployed['error']}"
    else:
        graph = f", deployed {deployed['top1']:.2f} %" if deployed.get("top1") is not None else ""
    return f"{result['top1']:.2f} %{graph}"


def _describe_plan(chosen: int, kept: int, jobs: int, folder: Path) -> str:
    if kept == chosen:
        return f"{kept} of {chosen} runs are done already"
    runs = f"{chosen} run{'s' if chosen > 1 else ''}" + (f" ({kept} kept)" if kept else "")
    at_once = f", {jobs} at once" if jobs > 1 else ""
    return f"{runs}{at_once}, into {folder}; each one's output: {folder / '<run>' / OUTPUT}"


def _keys(ablation: Ablation) -> list[Key]:
    """Run and seed of all runs; seeds change last, so that the table is whole after the first."""
    return [(run, seed) for seed in ablation.seeds for run in ablation.recipe.runs]


def _require_whole_table(lost: Sequence[Key]) -> None:
    if lost:
        raise InputError(
            f"the table would lose {len(lost)} run{'s' if len(lost) > 1 else ''} of another recipe",
            details=[run_name(*key) for key in lost],
            hint="undo what was set, choose another --workspace, or give --force to write the table without them",
        )


def _choose(ablation: Ablation, runs: Sequence[str]) -> list[Key]:
    names = choose_runs(ablation.recipe, runs)
    return [key for key in _keys(ablation) if key[0] in names]


def _rows_of(ablation: Ablation) -> dict[str, str]:
    return {name: run.row for name, run in ablation.recipe.runs.items()}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold it.

    Raises:
        WorkspaceError: another process works in it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    path = folder / LOCK
    with mapped_os_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise WorkspaceError(
                f"another process works on {folder}", hint="wait for it, or choose another --workspace"
            ) from error
    try:
        yield
    finally:
        lock.release()


def _job(ablation: Ablation, folder: Path, key: Key, plan: Recipe, threads: int, export: bool, anew: bool) -> Job:
    """A run to do, its folder made."""
    own = run_folder(folder, key)
    settings = ablation.settings(*key)
    if isinstance(plan.data, ImagesSection) and (plan.data.source or "").partition("/")[0] != "wds":
        # With shards each worker shuffles its own: there the number is part of the recipe.
        settings.append(f"data.workers={min(plan.data.workers, threads)}")
    with mapped_os_errors(own / RECIPE):
        own.mkdir(parents=True, exist_ok=True)
    return Job(*key, own, ablation.base, tuple(settings), recipe_hash(plan), threads, export, anew)
