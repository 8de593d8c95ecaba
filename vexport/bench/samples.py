"""What the clock brings back of a candidate: raw durations, figures of them, and why to doubt them, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from vexport.bench.statistics import (
    LEVEL,
    Interval,
    Ratio,
    find_spikes,
    mean_interval,
    median_interval,
    paired_ratio,
    rank_correlation,
    unpaired_ratio,
)
from vexport.bench.watch import Conditions, why_disturbed

NS_PER_MS = 1e6

UNSTABLE_CV = 0.1  # spread within rounds of the calls that are no spikes
UNSTABLE_DRIFT = 0.1  # spread of the rounds' medians
STRAY = 10  # of so many rounds the slowest and the fastest make no drift
UNSTABLE_START = 0.05  # of the first round, by the others, where the warm-up did not come to an end
UNSTABLE_SPIKES = 0.02  # what spikes took beyond the median, by all measured time: so much they add to a mean
UNSTABLE_OVERHEAD = 0.01  # of the clock itself, by the median
STEADY = 0.7  # rank correlation of the rounds' medians with time from which a drift has a direction

RoundsNs = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class WarmUp:
    """What went before the first round.

    Args:
        duration_s: How long it took.
        calls: How many calls that were.
        stable: Whether the last windows' medians agreed; None where there were too few to tell.
        windows_ns: Median of each window.
    """

    duration_s: float
    calls: int
    stable: bool | None
    windows_ns: tuple[float, ...] = ()


@dataclass(frozen=True)
class Samples:
    """Raw durations of one candidate's calls. Nothing is ever clipped or left out.

    Args:
        name: The candidate's.
        rounds_ns: Duration of each call in nanoseconds, round by round.
        error: What it failed with, in words; None where it did not. Its figures are then of the calls before, or NaN.
        warm_up: What went before.
        parts_ns: Durations of parts of a call, as `device` or `enqueue`, by further calls of each round.
        conditions: What the machine was at in each round.
        overhead_ns: What the clock itself adds to each duration.
    """

    name: str
    rounds_ns: RoundsNs
    error: str | None = None
    warm_up: WarmUp | None = None
    parts_ns: Mapping[str, RoundsNs] = field(default_factory=lambda: MappingProxyType({}))
    conditions: tuple[Conditions, ...] = ()
    overhead_ns: float = 0.0

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
        """Coefficient of variation: standard deviation by mean, of all calls."""
        return _cv(self.ns)

    @cached_property
    def round_medians_ms(self) -> tuple[float, ...]:
        """Median of each round."""
        return tuple(float(np.median(part)) / NS_PER_MS for part in self.rounds_ns if part)

    @property
    def drift(self) -> float:
        """Spread of the rounds' medians, by the median of all samples.

        Of ten rounds and more the slowest and the fastest tenth are left out: a median does not follow them, and some
        round is hit on any machine. (They are in every other figure.)
        """
        least, most = self._drift_ends
        return (most - least) / self.median_ms if self.median_ms > 0 else math.nan

    @property
    def _drift_ends(self) -> tuple[float, float]:
        medians = sorted(self.round_medians_ms)
        stray = len(medians) // STRAY
        return (medians[stray], medians[-1 - stray]) if medians else (math.nan, math.nan)

    @cached_property
    def spikes(self) -> tuple[tuple[int, int], ...]:
        """Calls that took much longer than their round, as (round, call); part of every figure all the same."""
        return find_spikes(self.rounds_ns)

    @property
    def unstable(self) -> bool:
        """Whether the figures deserve doubt."""
        return bool(self.unstable_because)

    @cached_property
    def unstable_because(self) -> tuple[str, ...]:
        """Why the figures deserve doubt, one line each: `spikes: ...`, `drift: ...`, `throttling: ...`, `load: ...`."""
        if self.error is not None:
            return (f"error: {self.error}",)
        if not self.median_ms > 0:
            return (
                ("too short: no call took a time that the clock can see",) if self.count else ("no call was measured",)
            )
        said = [*self._why_few(), *self._why_short(), *self._why_spread(), *self._why_drift()]
        return (*said, *self._why_cold(), *why_disturbed(self.conditions))

    def _why_few(self) -> list[str]:
        """Between rounds lies most of what changes on a machine; the intervals of a single one know nothing of it."""
        return ["rounds: there is one only, and intervals are too narrow"] if len(self.round_medians_ms) == 1 else []

    def _why_short(self) -> list[str]:
        share = self.overhead_ns / (self.median_ms * NS_PER_MS)
        if share <= UNSTABLE_OVERHEAD:
            return []
        return [f"too short: the clock's own {self.overhead_ns:.0f} ns are {share:.1%} of the median"]

    def _why_spread(self) -> list[str]:
        """By their own round's median: what changes between the rounds is drift."""
        places = set(self.spikes)
        calm, spikes, excess_ns = list[float](), list[float](), 0.0
        for index, part in enumerate(self.rounds_ns):
            middle = float(np.median(part)) if part else 0.0
            for call, value in enumerate(part):
                if (index, call) in places:
                    spikes.append(value / middle)
                    excess_ns += value - middle
                elif middle:
                    calm.append(value / middle)
        said = []
        if (share := excess_ns / float(self.ns.sum())) > UNSTABLE_SPIKES:
            said.append(
                f"spikes: {len(spikes)} of {self.count} calls, up to {max(spikes):.1f} times the median, "
                f"added {share:.0%} of the time"
            )
        if (rest := _cv(np.array(calm))) > UNSTABLE_CV:
            without = " without the spikes" if spikes else ""
            said.append(f"spread: coefficient of variation {rest:.2f} within rounds{without}")
        return said

    def _why_drift(self) -> list[str]:
        if not self.drift > UNSTABLE_DRIFT:
            return []
        least, most = self._drift_ends
        steady = rank_correlation(self.round_medians_ms)
        how = "rising" if steady >= STEADY else "falling" if steady <= -STEADY else "to and fro"
        return [f"drift: the rounds' medians lie between {least:.4g} and {most:.4g} ms ({self.drift:.0%}), {how}"]

    def _why_cold(self) -> list[str]:
        """A warm-up that was cut off matters where the first round shows it.

        Three windows of a few slow calls often differ by chance; had the candidate not been warm, so would the rounds.
        """
        if self.warm_up is None or self.warm_up.stable is not False:
            return []
        first, *others = self.round_medians_ms
        usual = float(np.median(others)) if others else math.nan
        if abs(first / usual - 1) <= UNSTABLE_START:
            return []
        told = f", and the first round took {first / usual:.2f} times the others" if others else ""
        return [f"warm-up: still changing after {self.warm_up.duration_s:.1f} s{told}"]

    def percentile_ms(self, percent: float) -> float:
        """Duration that `percent` per cent of the calls do not exceed; NaN where there are none."""
        return float(np.percentile(self.ns, percent)) / NS_PER_MS if self.count else math.nan

    def median_interval_ms(self, *, level: float = LEVEL, seed: int = 0) -> Interval | None:
        """The median and its bootstrap interval, by rounds; None where there is no sample."""
        found = median_interval(self.rounds_ns, level=level, seed=seed)
        return found and replace(
            found, value=found.value / NS_PER_MS, low=found.low / NS_PER_MS, high=found.high / NS_PER_MS
        )

    def per_second(self, items: int = 1, *, level: float = LEVEL, seed: int = 0) -> Interval | None:
        """Throughput of calls one after another: items by mean duration, so that every slow call counts.

        Args:
            items: Images of one call.
            level: Of the interval.
            seed: Of its draws.
        """
        found = mean_interval(self.rounds_ns, level=level, seed=seed)
        if found is None or not found.low > 0:
            return None
        rate = 1e9 * items
        return Interval(rate / found.value, rate / found.high, rate / found.low, level)

    def part(self, name: str) -> Samples | None:
        """The samples of a part of each call, as if it were a candidate; None where it was not measured."""
        if name not in self.parts_ns:
            return None
        return Samples(
            f"{self.name}, {name}", self.parts_ns[name], self.error, self.warm_up, conditions=self.conditions
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, raw samples and all, from which `from_json` makes the same again."""
        return {
            "name": self.name,
            "rounds_ns": [list(part) for part in self.rounds_ns],
            "error": self.error,
            "warm_up": asdict(self.warm_up) if self.warm_up else None,
            "parts_ns": {name: [list(part) for part in rounds] for name, rounds in self.parts_ns.items()},
            "conditions": [one.to_json() for one in self.conditions],
            "overhead_ns": self.overhead_ns,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Samples:
        """The opposite of `to_json`."""
        warm_up = data["warm_up"]
        return cls(
            data["name"],
            _as_rounds(data["rounds_ns"]),
            data["error"],
            WarmUp(**{**warm_up, "windows_ns": tuple(warm_up["windows_ns"])}) if warm_up else None,
            {name: _as_rounds(rounds) for name, rounds in data["parts_ns"].items()},
            tuple(Conditions.from_json(one) for one in data["conditions"]),
            data["overhead_ns"],
        )


def ratio(a: Samples, b: Samples, *, paired: bool = True, seed: int = 0, level: float = LEVEL) -> Ratio | None:
    """How many times the time of `b` one call of `a` takes, with a bootstrap interval.

    Args:
        a: Numerator.
        b: Denominator.
        paired: Round i of both was taken side by side, as one run of the clock does: the median of the rounds' ratios.
            Otherwise, for samples of different runs, the quotient of the medians.
        seed: Of the draws.
        level: Share of such intervals that hold the truth.

    Returns:
        The ratio; None where one of them failed or took no measurable time.
    """
    if a.error is not None or b.error is not None or not (a.median_ms > 0 and b.median_ms > 0):
        return None
    return (paired_ratio if paired else unpaired_ratio)(a.rounds_ns, b.rounds_ns, seed=seed, level=level)


def _cv(values: npt.NDArray[Any]) -> float:
    mean = float(values.mean()) if len(values) else 0.0
    return float(values.std()) / mean if mean else math.nan


def _as_rounds(rounds: Sequence[Sequence[int]]) -> RoundsNs:
    return tuple(tuple(int(value) for value in part) for part in rounds)
