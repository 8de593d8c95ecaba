"""A benchmark's groups: made, then measured one after the other, until Ctrl-C or until the GPU goes away."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vexport.bench.clock import Clock
from vexport.bench.scheduler import REST_S
from vexport.pipeline.bench_accuracy import AccuracyKey, Answered
from vexport.pipeline.bench_make import AskBackend, AskGpu, Maker
from vexport.pipeline.bench_matrix import Cell, make_cell, split_large
from vexport.pipeline.bench_roofline import Rooflines
from vexport.pipeline.bench_run import (
    Estimate,
    GroupStore,
    Result,
    cell_seconds,
    group_key,
    measure_group,
    not_run,
)
from vexport.pipeline.bench_settings import Session
from vexport.pipeline.bench_tf32 import OVERRIDE


@dataclass
class Progress:
    """What there is so far.

    Args:
        found: Results, group by group.
        accuracies: Of artifacts and backends, see `measure_accuracies`.
        rooflines: Of cells.
        interrupted: Whether Ctrl-C ended it.
        gone: Why the GPU does not answer any more.
    """

    found: list[list[Result]] = field(default_factory=list)
    accuracies: dict[AccuracyKey, Answered] = field(default_factory=dict)
    rooflines: Rooflines = field(default_factory=Rooflines)
    interrupted: bool = False
    gone: str | None = None


def make_groups(session: Session, planned: Sequence[Sequence[Cell]], maker: Maker) -> list[list[Cell]]:
    """Groups with what their cells open, or the reason why they do not run.

    Args:
        session: What to do.
        planned: Groups of cells, made or to be made.
        maker: Makes artifacts, and asks.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was made stays.
    """
    reasons: dict[str, str | None] = {}
    groups: list[list[Cell]] = []
    total, done = sum(len(cells) for cells in planned), 0
    for cells in planned:
        backend = cells[0].backend
        if backend not in reasons:
            session.on_step(f"asking for {backend}", None)
            reasons[backend] = why_not_here(backend, maker)
            if reasons[backend]:
                session.tell(f"{backend} is not run: {reasons[backend]}")
        reason = reasons[backend]
        made: list[Cell] = []
        for cell in cells:
            done += 1
            maker.progress = f" (cell {done} of {total})"
            if reason is not None:
                made.append(replace(cell, opener=None, why_not=reason))
                continue
            if cell.made is None:
                cell = make_cell(cell, maker, session.threads, cuda_graph=session.cuda_graph)
                if cell.why_not:
                    session.tell(f"{cell.network}, {backend} {cell.precision.upper()}: {cell.why_not}")
            if cell.name not in {one.name for one in made}:  # a file that is named may be what a network was found as
                made.append(cell)
        groups += split_large(made, session.max_open, session.baseline)
    maker.close()
    return groups


def why_not_here(backend: str, maker: Maker) -> str | None:
    """Why a backend does not run on this machine; None where it does.

    A GPU's libraries are tried in a process of their own: they may crash, and they hold memory on the GPU.
    """
    from vexport.run.backends import BACKENDS

    if BACKENDS[backend].device == "cpu":
        return BACKENDS[backend].why_not_here()
    return maker.ask(AskBackend(backend), f"asking for {backend}")


def measure_groups(
    session: Session,
    groups: Sequence[Sequence[Cell]],
    environment: Mapping[str, Any],
    store: GroupStore | None,
    progress: Progress,
    maker: Maker,
) -> None:
    """Measure group by group.

    Args:
        session: What to do.
        groups: From `make_groups`.
        environment: What is measured on.
        store: Keeps finished groups.
        progress: Takes what comes of it.
        maker: Asks whether the GPU is still there.

    Raises:
        KeyboardInterrupt: Ctrl-C; finished groups are in `progress`.
        WorkspaceError: a group cannot be kept.
    """
    clock = session.clock
    running = [sum(cell.opener is not None for cell in cells) for cells in groups]
    estimate = Estimate([sum(cell_seconds(cell, clock) for cell in cells) for cells in groups])
    shaping = {
        **clock_numbers(clock),
        "rest_s": REST_S,
        "threads": session.threads,
        "own_processes": session.own_processes,
        OVERRIDE: os.environ.get(OVERRIDE),
    }
    counted = f"{count(sum(running), 'cell')} in {count(len(groups), 'group')}"
    session.tell(f"{counted}: about {about(estimate.rest_s())} of measuring")
    for number, cells in enumerate(groups, start=1):
        key = group_key(cells, shaping, environment)
        stored = store.find(key, cells) if store is not None and session.resume else None
        if stored is not None or not running[number - 1]:
            progress.found.append(stored or [not_run(cell, cell.why_not or "it is not there") for cell in cells])
            estimate.finish(None)
            continue
        if progress.gone is not None and cells[0].on_gpu:
            progress.found.append([not_run(cell, f"the GPU went away: {progress.gone}") for cell in cells])
            estimate.finish(None)
            continue

        def on_turn(text: str, share: float | None, which: int = number) -> None:
            within = share or 0.0
            left = f"group {which} of {len(groups)}, about {about(estimate.rest_s(within))} left"
            session.on_step(f"{text} ({left})", estimate.share(within))

        begun = time.monotonic()
        results = measure_group(
            cells, clock, timeouts=session.timeouts, own_processes=session.own_processes, on_turn=on_turn
        )
        progress.found.append(results)
        if cells[0].on_gpu and any(one.failed for one in results):
            progress.gone = maker.ask(AskGpu(), "asking for the GPU")
        if store is not None:
            store.save(key, results)
        estimate.finish(time.monotonic() - begun)
        _tell_group(session, results, number, len(groups), estimate)
        if progress.gone is not None:
            session.tell(f"the GPU went away: {progress.gone}; what needs it is not run")


def _tell_group(session: Session, results: Sequence[Result], number: int, total: int, estimate: Estimate) -> None:
    cell = results[0].cell
    said = f"group {number} of {total} done: {cell.backend} {cell.precision.upper()}, batch {cell.batch}"
    if cell.part != (1, 1):
        said += ", part {} of {}".format(*cell.part)
    if number < total:
        said += f"; about {about(estimate.rest_s())} left"
    session.tell(said)
    for one in results:
        if one.failed:
            session.tell(f"  {one.cell.network}: {one.samples.error}")


def clock_numbers(clock: Clock) -> dict[str, float | int]:
    """What shapes the figures."""
    names = ("warmup_s", "warmup_most_s", "warmup_bound", "settle_s", "duration_s", "least_count", "rounds", "seed")
    return {name: getattr(clock, name) for name in names}


def count(number: int, what: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def about(seconds: float) -> str:
    """A time that is left, in words."""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{seconds / 60:.0f} min"
