"""Time any callables against each other, fairly.

Candidates take turns, round by round (A B C, A B C ...), so that whatever slows the machine for a while slows them all.
A callable must have finished its work when it returns.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from vexport.errors import InputError, VexportError

UNSTABLE_CV = 0.1  # spread of all samples
UNSTABLE_DRIFT = 0.1  # spread of the rounds' medians
NS_PER_MS = 1e6

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Samples:
    """Raw durations of one candidate's calls. Nothing is ever clipped or left out.

    Args:
        name: The candidate's.
        rounds_ns: Duration of each call in nanoseconds, round by round.
        error: What it failed with, in words; None where it did not. Its figures are then of the calls before, or NaN.
    """

    name: str
    rounds_ns: tuple[tuple[int, ...], ...]
    error: str | None = None

    @cached_property
    def ns(self) -> npt.NDArray[np.int64]:
        """All durations in the order of the calls."""
        return np.array([value for part in self.rounds_ns for value in part], dtype=np.int64)

    @property
    def count(self) -> int:
        return len(self.ns)

    @property
    def median_ms(self) -> float:
        return self.percentile_ms(50)

    @property
    def p90_ms(self) -> float:
        return self.percentile_ms(90)

    @property
    def p95_ms(self) -> float:
        return self.percentile_ms(95)

    @property
    def p99_ms(self) -> float:
        return self.percentile_ms(99)

    @property
    def mean_ms(self) -> float:
        return float(self.ns.mean()) / NS_PER_MS if self.count else math.nan

    @property
    def cv(self) -> float:
        """Coefficient of variation: standard deviation by mean."""
        mean = float(self.ns.mean()) if self.count else 0.0
        return float(self.ns.std()) / mean if mean else math.nan

    @property
    def drift(self) -> float:
        """Spread of the rounds' medians, from least to greatest, by the median of all samples."""
        medians = [float(np.median(part)) for part in self.rounds_ns if part]
        return (max(medians) - min(medians)) / (self.median_ms * NS_PER_MS) if self.median_ms > 0 else math.nan

    @property
    def unstable(self) -> bool:
        """Whether the figures deserve doubt: it failed, cv is above 0.1, or the rounds' medians drift by over 0.1."""
        # A NaN, of no samples or of calls too short for the clock, fails both comparisons.
        return self.error is not None or not (self.cv <= UNSTABLE_CV and self.drift <= UNSTABLE_DRIFT)

    def percentile_ms(self, percent: float) -> float:
        """Duration that `percent` per cent of the calls do not exceed; NaN where there are none."""
        return float(np.percentile(self.ns, percent)) / NS_PER_MS if self.count else math.nan


@dataclass(frozen=True)
class Clock:
    """How long to measure.

    Args:
        warmup_s: Calls that are not measured, per candidate, before the first round.
        duration_s: Measured time per candidate, all rounds together.
        least_count: Measured calls per candidate at the least, however long they take.
        rounds: Turns of each candidate.
        now_ns: The time source.

    Raises:
        InputError: one of them is negative, or there would be no call.
    """

    warmup_s: float = 1.0
    duration_s: float = 3.0
    least_count: int = 50
    rounds: int = 10
    now_ns: Callable[[], int] = time.perf_counter_ns

    def __post_init__(self) -> None:
        if not (self.warmup_s >= 0 and self.duration_s >= 0 and self.least_count >= 1 and self.rounds >= 1):
            raise InputError(
                f"a clock cannot run {self.rounds} rounds of {self.least_count} calls in {self.duration_s} s "
                f"after {self.warmup_s} s",
                hint="times are 0 or more, counts 1 or more",
            )

    def settings(self) -> dict[str, float | int]:
        """The numbers, for a report."""
        return {
            "warmup_s": self.warmup_s,
            "duration_s": self.duration_s,
            "least_count": self.least_count,
            "rounds": self.rounds,
        }

    def measure(
        self, candidates: Mapping[str, Callable[[], object]], *, progress: Progress | None = None
    ) -> dict[str, Samples]:
        """Time candidates in turns.

        Args:
            candidates: Name to callable. One that raises is measured no further; its error is its result.
            progress: Told the candidate, the turns done by all, and the turns in all, before each turn and at the end.

        Returns:
            Name to samples, in the order given.
        """
        taken: dict[str, list[tuple[int, ...]]] = {name: [] for name in candidates}
        errors: dict[str, str] = {}
        tell = progress or (lambda name, done, total: None)
        total = (self.rounds + 1) * len(candidates)
        for turn in range(self.rounds + 1):  # turn 0 is the warm-up
            for index, (name, call) in enumerate(candidates.items()):
                tell(name, turn * len(candidates) + index, total)
                if name in errors:
                    continue
                samples: list[int] = []
                try:
                    self._warm_up(call) if turn == 0 else self._take_turn(call, samples)
                except Exception as error:
                    errors[name] = in_words(error)
                if samples:
                    taken[name].append(tuple(samples))
        if candidates:
            tell(name, total, total)
        return {name: Samples(name, tuple(taken[name]), errors.get(name)) for name in candidates}

    def _warm_up(self, call: Callable[[], object]) -> None:
        end = self.now_ns() + int(self.warmup_s * 1e9)
        call()
        while self.now_ns() < end:
            call()

    def _take_turn(self, call: Callable[[], object], samples: list[int]) -> None:
        """Append the durations of one turn's calls to `samples`, so that those before an error are kept."""
        now_ns, least = self.now_ns, math.ceil(self.least_count / self.rounds)
        call()  # brings the caches back from the candidate before, and lets its threads come to rest
        with _no_gc():
            end = now_ns() + int(self.duration_s * 1e9 / self.rounds)
            while True:
                before = now_ns()
                call()
                after = now_ns()
                samples.append(after - before)
                if after >= end and len(samples) >= least:
                    return


@contextmanager
def _no_gc() -> Iterator[None]:
    """No garbage collection inside this block: it would fall into somebody's call at random."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def in_words(error: Exception) -> str:
    """An error in one line."""
    text = error.message if isinstance(error, VexportError) else str(error)
    first_line = (text.strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians and the interval it lies in.

    Args:
        value: Median of one by median of the other.
        low: Lower end of the interval.
        high: Upper end.
        level: Share of resampled ratios inside.
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def inverse(self) -> Ratio:
        """The same seen from the other side."""
        return Ratio(1 / self.value, 1 / self.high, 1 / self.low, self.level)


def ratio(a: Samples, b: Samples, *, seed: int = 0, repeats: int = 1000, level: float = 0.95) -> Ratio | None:
    """Median of `a` by median of `b`, with a bootstrap interval.

    Calls of one round share the machine's state of that moment, so whole rounds are drawn, not calls, and the same ones
    for both where both have the same number. With one round only there is nothing to draw from but its calls: the
    interval is then too narrow.

    Args:
        a: Numerator.
        b: Denominator.
        seed: Of the draws.
        repeats: Draws.
        level: Share of the drawn ratios that the interval holds.

    Returns:
        The ratio; None where one of them failed or took no measurable time.
    """
    if a.error is not None or b.error is not None or not (a.median_ms > 0 and b.median_ms > 0):
        return None
    rng = np.random.default_rng(seed)
    parts_a, parts_b = _parts(a), _parts(b)
    paired = len(parts_a) == len(parts_b) == len(a.rounds_ns)
    drawn = []
    for _ in range(repeats):
        pick_a = rng.integers(len(parts_a), size=len(parts_a))
        pick_b = pick_a if paired else rng.integers(len(parts_b), size=len(parts_b))
        top, bottom = _median(parts_a, pick_a), _median(parts_b, pick_b)
        if bottom > 0:
            drawn.append(top / bottom)
    value = a.median_ms / b.median_ms
    tail = 50 * (1 - level)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Ratio(value, min(float(low), value), max(float(high), value), level)


def _parts(samples: Samples) -> list[npt.NDArray[np.int64]]:
    """What is drawn: rounds, or the calls of a single one."""
    rounds: Sequence[tuple[int, ...]] = samples.rounds_ns
    if len(rounds) == 1:
        rounds = [(value,) for value in rounds[0]]
    return [np.asarray(part, dtype=np.int64) for part in rounds]


def _median(parts: Sequence[npt.NDArray[Any]], picked: npt.NDArray[np.int64]) -> float:
    return float(np.median(np.concatenate([parts[index] for index in picked])))
