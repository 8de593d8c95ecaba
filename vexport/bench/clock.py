"""Time any callables against each other, fairly.

Candidates take turns, round by round, so that whatever slows the machine for a while slows them all. The order is
drawn anew for each round: in a fixed one each candidate would always find the caches, the temperature and the frequency
that the same neighbour leaves behind, and a rotation keeps the neighbours.

A callable must have finished its work when it returns.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vexport.bench.samples import Samples, WarmUp, ratio
from vexport.bench.scheduler import Interrupted, Progress, Run, take_turns
from vexport.bench.statistics import Interval, Ratio
from vexport.bench.watch import Conditions, Watcher, between
from vexport.errors import InputError, VexportError

__all__ = ["Candidate", "Clock", "Interrupted", "Interval", "Ratio", "Recorder", "Run", "Samples", "Timed", "WarmUp",
           "in_words", "ratio"]  # fmt: skip

WARMUP_WINDOWS, WARMUP_CALLS = 3, 3  # windows that have to agree, and the least calls of each
EMPTY_CALLS, EMPTY_BATCHES = 200, 11  # that the clock's own cost is measured with
PARTS_SHARE = 0.5  # of a turn's duration, again, for the parts of a call


@runtime_checkable
class Timed(Protocol):
    """A candidate that can tell more than how long a call took; see `vexport.bench.device` for GPUs."""

    def call(self) -> object:
        """All of the work, done on return."""

    def parts(self) -> Mapping[str, int]:
        """Do the work once more, and say how many nanoseconds each part of it took, as `device` or `enqueue`."""


Candidate = Callable[[], object] | Timed


@dataclass(frozen=True)
class Clock:
    """How long to measure.

    Args:
        warmup_s: Calls that are not measured, per candidate, before the first round, at the least. 0: one call only.
        duration_s: Measured time per candidate, all rounds together.
        least_count: Measured calls per candidate at the least, however long they take.
        rounds: Turns of each candidate. Below five the intervals are very wide; of a single one they say nothing of
            what changes between rounds.
        warmup_most_s: The warm-up goes on until the medians of its last three windows agree, but no longer than this,
            or than `warmup_s` where that is more.
        warmup_bound: Agree: the greatest by the least is at most one and this.
        settle_s: Calls at the start of a turn that are not measured: they bring the caches back from the candidate
            before, and let its threads come to rest. At least one.
        seed: Of the order within rounds.
        now_ns: The time source.
        watch: Says what the machine is at, before and after each turn.

    Raises:
        InputError: one of them is negative or endless, or there would be no call.
    """

    warmup_s: float = 1.0
    duration_s: float = 3.0
    least_count: int = 50
    rounds: int = 10
    warmup_most_s: float = 4.0
    warmup_bound: float = 0.05
    settle_s: float = 0.01
    seed: int = 0
    now_ns: Callable[[], int] = time.perf_counter_ns
    watch: Watcher | None = None

    def __post_init__(self) -> None:
        times = (self.warmup_s, self.duration_s, self.warmup_most_s, self.warmup_bound, self.settle_s)
        if not (all(0 <= value < math.inf for value in times) and self.least_count >= 1 and self.rounds >= 1):
            raise InputError(
                f"a clock cannot run {self.rounds} rounds of {self.least_count} calls in {self.duration_s} s "
                f"after {self.warmup_s} to {self.warmup_most_s} s",
                hint="times are 0 or more and end, counts are 1 or more",
            )

    def settings(self) -> dict[str, float | int | str]:
        """The numbers, for a report, with what the clock itself costs."""
        inside_ns, whole_ns = self.overhead_ns
        return {
            "warmup_s": self.warmup_s,
            "warmup_most_s": self.warmup_most_s,
            "warmup_bound": self.warmup_bound,
            "settle_s": self.settle_s,
            "duration_s": self.duration_s,
            "least_count": self.least_count,
            "rounds": self.rounds,
            "order": "drawn for each round",
            "seed": self.seed,
            "overhead_ns": inside_ns,
            "overhead_per_call_ns": whole_ns,
        }

    @cached_property
    def overhead_ns(self) -> tuple[float, float]:
        """What an empty callable takes: its median duration, and the whole loop per call.

        The first is part of every sample. It is told, not taken off: samples stay raw.
        """
        taken: list[int] = []
        loops: list[float] = []
        with _no_gc():
            for _ in range(EMPTY_BATCHES):
                before, batch = self.now_ns(), list[int]()
                _time_calls(lambda: None, self.now_ns, 0, EMPTY_CALLS, batch)
                loops.append((self.now_ns() - before) / len(batch))
                taken += batch
        return float(np.median(taken)), float(np.median(loops))  # of batches: a preemption falls into one of them

    def measure(self, candidates: Mapping[str, Candidate], *, progress: Progress | None = None) -> dict[str, Samples]:
        """The samples of `run`."""
        return self.run(candidates, progress=progress).samples

    def run(self, candidates: Mapping[str, Candidate], *, progress: Progress | None = None) -> Run:
        """Time candidates in turns.

        Args:
            candidates: Name to callable. One that raises is measured no further; its error is its result.
            progress: Told the candidate, the turns done by all, and the turns in all, before each turn and at the end.

        Raises:
            Interrupted: Ctrl-C, with the samples taken so far.
        """
        recorders = [Recorder(self, name, candidate) for name, candidate in candidates.items()]
        return take_turns(recorders, rounds=self.rounds, seed=self.seed, progress=progress)


@dataclass
class Recorder:
    """Takes one candidate's samples, turn by turn, for whoever gives the turns: this process or another one.

    Args:
        clock: How to measure.
        name: The candidate's.
        candidate: What to time.
        error: What it failed with, in words; it is then called no more.
    """

    clock: Clock
    name: str
    candidate: Candidate
    error: str | None = None
    _warm_up: WarmUp | None = None
    _rounds: list[list[int]] = field(default_factory=list)
    _parts: dict[str, list[list[int]]] = field(default_factory=dict)
    _conditions: list[Conditions] = field(default_factory=list)

    def warm_up(self) -> None:
        """Call it until it is stable. An error of the candidate is kept as its result."""
        with self._keeping_errors():
            self._warm_up = self._until_stable()

    def take_turn(self) -> None:
        """Take one round of samples. Those before an error, of the candidate or Ctrl-C, are kept."""
        if self.error is not None:
            return
        clock, taken, watch = self.clock, list[int](), self.clock.watch
        turn_ns = int(clock.duration_s * 1e9 / clock.rounds)
        least = math.ceil(clock.least_count / clock.rounds)
        before = watch.read() if watch else None
        try:
            with self._keeping_errors(), _no_gc():
                call = self._call
                _time_calls(call, clock.now_ns, int(clock.settle_s * 1e9), 1, [])
                _time_calls(call, clock.now_ns, turn_ns, least, taken)
                if isinstance(self.candidate, Timed):
                    self._take_parts(self.candidate, int(PARTS_SHARE * turn_ns), least)
        finally:
            if taken:
                self._rounds.append(taken)
                if watch and before:
                    self._conditions.append(between(before, watch.read()))

    def samples(self) -> Samples:
        """What was taken so far."""
        return Samples(
            self.name,
            tuple(tuple(part) for part in self._rounds),
            self.error,
            self._warm_up,
            {name: tuple(tuple(part) for part in rounds) for name, rounds in self._parts.items()},
            tuple(self._conditions),
            self.clock.overhead_ns[0],
        )

    @property
    def _call(self) -> Callable[[], object]:
        return self.candidate.call if isinstance(self.candidate, Timed) else self.candidate

    def _until_stable(self) -> WarmUp:
        clock, call, windows = self.clock, self._call, list[float]()
        start = clock.now_ns()
        least, most = start + int(clock.warmup_s * 1e9), start + int(max(clock.warmup_s, clock.warmup_most_s) * 1e9)
        window_ns = int(clock.warmup_s * 1e9 / WARMUP_WINDOWS)
        if window_ns == 0:
            call()
            return WarmUp((clock.now_ns() - start) / 1e9, 1, None)
        calls = 0
        while True:
            taken, begun = list[int](), clock.now_ns()
            while len(taken) < WARMUP_CALLS or clock.now_ns() < begun + window_ns:
                _time_calls(call, clock.now_ns, 0, len(taken) + 1, taken)  # one more
                if clock.now_ns() >= most:
                    break
            calls += len(taken)
            if len(taken) >= WARMUP_CALLS or not windows:  # one that time cut short says little
                windows.append(float(np.median(taken)))
            now, last = clock.now_ns(), windows[-WARMUP_WINDOWS:]
            agree = min(last) * (1 + clock.warmup_bound) >= max(last)
            if (len(last) == WARMUP_WINDOWS and agree and now >= least) or now >= most:
                # A candidate so slow that even two windows do not fit cannot be judged.
                return WarmUp((now - start) / 1e9, calls, agree if len(windows) > 1 else None, tuple(windows))

    def _take_parts(self, candidate: Timed, duration_ns: int, least: int) -> None:
        taken: list[Mapping[str, int]] = []
        try:
            # The turn's calls left the caches warm: nothing to settle.
            _time_calls(lambda: taken.append(candidate.parts()), self.clock.now_ns, duration_ns, least, [])
        finally:
            for name in taken[0] if taken else ():
                self._parts.setdefault(name, []).append([round(one[name]) for one in taken])

    @contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = in_words(error)


def _time_calls(
    call: Callable[[], object],
    now_ns: Callable[[], int],
    duration_ns: int,
    least: int,
    into: MutableSequence[int],
) -> None:
    """Append the durations of calls for so long, and of so many at the least: what is there on an error is kept."""
    end = now_ns() + duration_ns
    append = into.append
    while True:
        before = now_ns()
        call()
        after = now_ns()
        append(after - before)
        if after >= end and len(into) >= least:
            return


@contextmanager
def _no_gc() -> Iterator[None]:
    """No garbage collection inside this block: it would fall into somebody's call at random."""
    was_enabled = gc.isenabled()
    gc.collect(1)  # what the turn before left is young; going through all of PyTorch would take longer than some turns
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def in_words(error: Exception) -> str:
    """An error in one line."""
    text: Any = error.message if isinstance(error, VexportError) else str(error)
    first_line = (text.strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
