"""Measure groups of cells: each cell in its own process, the cells of a group in turns, one group after the other.

What a group gave is written as soon as it is finished, so that an interrupted benchmark can go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vexport.bench.clock import PARTS_SHARE, Clock, Recorder, Samples, in_words
from vexport.bench.scheduler import REST_S, take_turns
from vexport.bench.watch import Watch
from vexport.bench.worker import Timeouts, Worker
from vexport.pipeline.bench_int8 import int8_note, is_graph_note
from vexport.pipeline.bench_matrix import Cell
from vexport.pipeline.bench_tf32 import tf32_note
from vexport.workspace import mapped_os_errors

OnStep = Callable[[str, float | None], None]
NOT_RUN = "not run"
# To start a process and open a network in it, for the first estimate; some compile kernels or build an engine then.
OPEN_S = {"cpu": 4.0, "gpu": 12.0, "torch-compile": 40.0, "torch-compile-fp16": 40.0, "onnxruntime-tensorrt": 60.0}
ISOLATION = (
    "each network in a process of its own; those of a group take turns, in an order drawn for each round, "
    "after a rest for the threads of the one before; "
    "a process that waits for its turn holds memory and no core (run.waiting says what it took all the same)"
)
ONE_PROCESS = "all networks in one process; those of a group take turns, in an order drawn for each round"


@dataclass(frozen=True)
class Result:
    """What came of one cell.

    Args:
        cell: The cell.
        samples: Its samples; none where it did not run.
        facts: What the runner says of itself: `backend` and `runner`.
        failure: Why it failed: kind, text and the last lines of its standard error.
        waiting: What its process took while others had their turns.
    """

    cell: Cell
    samples: Samples
    facts: Mapping[str, Any] = field(default_factory=dict)
    failure: Mapping[str, Any] | None = None
    waiting: Mapping[str, float] | None = None

    @property
    def measured(self) -> bool:
        return self.samples.error is None and self.samples.count > 0

    @property
    def failed(self) -> bool:
        """Whether it ran and did not come to its end; trying again may help."""
        return self.failure is not None and self.failure["kind"] != NOT_RUN

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.cell.name,
            "samples": self.samples.to_json(),
            "facts": dict(self.facts),
            "failure": self.failure,
            "waiting": self.waiting,
        }

    @classmethod
    def from_json(cls, cell: Cell, data: Mapping[str, Any]) -> Result:
        return cls(
            noted(cell, data["facts"]),
            Samples.from_json(data["samples"]),
            data["facts"],
            data["failure"],
            data["waiting"],
        )


def not_run(cell: Cell, reason: str) -> Result:
    """A cell that keeps its place, with the reason."""
    return Result(cell, Samples(cell.name, (), f"not run: {reason}"), failure={"kind": NOT_RUN, "text": reason})


class Estimate:
    """How long groups will take: from the settings at first, then corrected by those that are done.

    Args:
        planned_s: What each would take by the settings, see `cell_seconds`.
    """

    def __init__(self, planned_s: Sequence[float]) -> None:
        self._planned = list(planned_s)
        self._done: list[tuple[float, float]] = []
        self.total_s = sum(self._planned)

    def finish(self, seconds: float | None) -> None:
        """The next group is done, in so many seconds; None: it was there already, or did not run."""
        planned = self._planned.pop(0)
        self.total_s -= planned if seconds is None else 0.0
        if seconds is not None:
            self._done.append((planned, seconds))

    def rest_s(self, share: float = 0.0) -> float:
        """Until the end, with this share of the next group done."""
        planned, taken = (sum(part) for part in zip(*self._done, strict=True)) if self._done else (1.0, 1.0)
        left = sum(self._planned) - (share * self._planned[0] if self._planned else 0.0)
        return left * taken / planned

    def share(self, within: float = 0.0) -> float:
        """The share of all that is done."""
        done = sum(planned for planned, _ in self._done) + (within * self._planned[0] if self._planned else 0.0)
        return min(1.0, done / self.total_s) if self.total_s else 1.0


def cell_seconds(cell: Cell, clock: Clock) -> float:
    """What one cell takes, about; nothing where it does not run."""
    if cell.opener is None:
        return 0.0
    opening = OPEN_S.get(cell.backend, OPEN_S["gpu" if cell.on_gpu else "cpu"])
    measured = clock.duration_s * (1 + PARTS_SHARE if cell.on_gpu else 1) + clock.rounds * (clock.settle_s + REST_S)
    return opening + clock.warmup_s + measured


def measure_group(
    cells: Sequence[Cell],
    clock: Clock,
    *,
    timeouts: Timeouts,
    own_processes: bool = True,
    on_turn: OnStep = lambda _text, _share: None,
) -> list[Result]:
    """Measure cells in turns.

    Args:
        cells: Of one group, made.
        clock: How.
        timeouts: When a process counts as hung.
        own_processes: Whether each runs in a process of its own.
        on_turn: Told what is going on, and the share of the group that is done.

    Returns:
        One result per cell, in their order.

    Raises:
        Interrupted: Ctrl-C; nothing is left running.
        KeyboardInterrupt: likewise, before the first turn.
    """
    running = [cell for cell in cells if cell.opener is not None]
    with ExitStack() as stack:
        measure = _in_workers if own_processes else _in_this_process
        found = measure(running, clock, timeouts, stack, on_turn)
    by_name = {result.cell.name: result for result in found}
    return [by_name.get(cell.name) or not_run(cell, cell.why_not or "it is not there") for cell in cells]


def _in_workers(
    cells: Sequence[Cell], clock: Clock, timeouts: Timeouts, stack: ExitStack, on_turn: OnStep
) -> list[Result]:
    workers = []
    for index, cell in enumerate(cells):
        on_turn(f"opening {cell.network}", 0.1 * index / len(cells))
        assert cell.opener is not None, "only those that run"
        worker = Worker(cell.name, cell.opener, clock, timeouts=timeouts, gpu=cell.on_gpu)
        stack.callback(worker.close)
        worker.open()
        workers.append(worker)
    alive = sum(worker.error is None for worker in workers)
    for worker in workers:
        worker.beside = alive - 1 + _holds_gpu()
    run = take_turns(workers, rounds=clock.rounds, seed=clock.seed, progress=_telling(cells, on_turn), rest_s=REST_S)
    return [
        Result(
            noted(cell, worker.facts),
            run.samples[cell.name],
            worker.facts,
            worker.failure.to_json() if worker.failure else None,
            worker.waiting.to_json(),
        )
        for cell, worker in zip(cells, workers, strict=True)
    ]


def noted(cell: Cell, facts: Mapping[str, Any]) -> Cell:
    """A cell whose notes say what its backend computed in, as its runner tells: FP32 on a GPU, and INT8."""
    if cell.made is None or not facts:
        return cell
    notes = cell.made.notes
    if (in_int8 := int8_note(cell, facts)) is not None:
        notes = (*(one for one in notes if not is_graph_note(one)), in_int8)
    if (tf32 := tf32_note(cell, facts)) is not None:
        notes = (*notes, tf32)
    return cell if notes == cell.made.notes else replace(cell, made=replace(cell.made, notes=notes))


def _holds_gpu() -> int:
    """1 where this process holds memory on the GPU; that PyTorch is ready to use one makes no context there."""
    import sys

    torch = sys.modules.get("torch")
    return int(torch is not None and torch.cuda.is_initialized() and torch.cuda.memory_reserved() > 0)


def _in_this_process(
    cells: Sequence[Cell], clock: Clock, _timeouts: Timeouts, stack: ExitStack, on_turn: OnStep
) -> list[Result]:
    recorders: list[Recorder] = []
    facts: list[dict[str, Any]] = []
    watching = replace(clock, watch=Watch(_gpu(cells)))
    for cell in cells:
        on_turn(f"opening {cell.network}", 0.0)
        assert cell.opener is not None, "only those that run"
        try:
            opened = cell.opener()
        except Exception as error:  # as in a worker: it costs this cell
            recorders.append(Recorder(watching, cell.name, lambda: None, error=in_words(error)))
            facts.append({})
            continue
        stack.callback(opened.close)
        recorders.append(Recorder(watching, cell.name, opened.candidate))
        facts.append(dict(opened.facts))
    run = take_turns(recorders, rounds=clock.rounds, seed=clock.seed, progress=_telling(cells, on_turn), rest_s=REST_S)
    return [
        Result(noted(cell, told), samples, told, {"kind": "failed", "text": samples.error} if samples.error else None)
        for cell, samples, told in zip(cells, run.samples.values(), facts, strict=True)
    ]


def _gpu(cells: Sequence[Cell]) -> Any:
    if not any(cell.on_gpu for cell in cells):
        return None
    from vexport.bench.nvml import open_gpu

    return open_gpu()[0]


def _telling(cells: Sequence[Cell], on_turn: OnStep) -> Callable[[str, int, int], None]:
    names = {cell.name: cell.network for cell in cells}
    return lambda name, done, total: on_turn(f"timing {names[name]}", 0.1 + 0.9 * done / max(1, total))


def group_key(cells: Sequence[Cell], settings: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """What a stored group belongs to: artifacts, settings and machine.

    Args:
        cells: Of the group.
        settings: That shape the figures.
        environment: From `describe_environment`.
    """
    gpu = environment.get("gpu") or {}
    machine = {name: environment.get(name) for name in ("cpu", "usable_cores", "os", "python", "versions", "gpus")}
    machine["variables"] = environment.get("variables")
    what = [
        [
            *cell.group,
            cell.network,
            cell.made.sha256 if cell.made else cell.why_not,
            bool(cell.opener and cell.opener.cuda_graph),
        ]
        for cell in cells
    ]
    text = json.dumps([what, dict(settings), machine, gpu.get("driver")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def replays(cell: Cell) -> bool:
    """Whether its launches are replayed as a CUDA graph."""
    return cell.opener is not None and cell.opener.cuda_graph


class GroupStore:
    """Finished groups of one benchmark, a file each.

    Args:
        folder: Where they live.
        resume: Keep those of an earlier benchmark; otherwise the first new one takes their place.
    """

    def __init__(self, folder: Path, *, resume: bool = True) -> None:
        self.folder = folder
        self._stale = not resume

    @property
    def count(self) -> int:
        """How many there are, of whatever settings."""
        return sum(1 for _ in self._groups())

    def require_writable(self) -> None:
        """Refuse before the work what could not be written after it.

        Raises:
            WorkspaceError: the folder cannot be written.
        """
        with mapped_os_errors(self.folder / "groups"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass

    def find(self, key: str, cells: Sequence[Cell]) -> list[Result] | None:
        """A stored group; None where there is none or it is damaged.

        One is measured again where not one of its cells was measured, or where a cell failed: a crash, a lack of
        memory or a GPU that was gone may not come again.
        """
        try:
            data = json.loads(self._path(key).read_text(encoding="utf-8"))
            found = {one["name"]: one for one in data["cells"]}
            results = [Result.from_json(cell, found[cell.name]) for cell in cells]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        whole = any(result.measured for result in results) and not any(result.failed for result in results)
        return results if whole else None

    def save(self, key: str, results: Sequence[Result]) -> None:
        """Write a finished group, whole or not at all.

        Raises:
            WorkspaceError: it cannot be written.
        """
        if self._stale:
            self.clear()
            self._stale = False
        target = self._path(key)
        with mapped_os_errors(target):
            descriptor, name = tempfile.mkstemp(prefix=".vexport-", dir=self.folder)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                    json.dump({"cells": [result.to_json() for result in results], "at": time.time()}, stream)
                Path(name).replace(target)
            finally:
                Path(name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all groups."""
        for path in list(self._groups()):
            with mapped_os_errors(path):
                path.unlink(missing_ok=True)

    def _groups(self) -> Iterator[Path]:
        return self.folder.glob("group-*.json") if self.folder.is_dir() else iter(())

    def _path(self, key: str) -> Path:
        return self.folder / f"group-{key[:24]}.json"
