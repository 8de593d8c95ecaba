"""Figures of samples that come in rounds: arrays in, numbers out.

Calls of one round share the machine's state of that moment: they are no independent samples, rounds nearly are. So the
bootstrap draws whole rounds (a block bootstrap). Fewer than six rounds have too few draws for that: a median lies
outside of the range of five in one case of sixteen. Their interval is Student's, of the logarithms of their figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Rounds = Sequence[Sequence[int]]
Floats = npt.NDArray[np.float64]

REPEATS = 1000
LEVEL = 0.95
BLOCKS_OF_ONE_ROUND = 20
LEAST_BLOCKS = 6  # to draw from: the range of five holds a median in 93.75 % of cases, less than an interval promises

# A spike is over both: a share above its round's median, and this many robust standard deviations above it. The first
# alone would mark the ordinary spread of a noisy candidate, the second alone the steps of the clock in a quiet one.
SPIKE_SHARE = 0.25
SPIKE_SIGMAS = 6.0
_SIGMA_PER_MAD = 1.4826  # of a normal distribution
_WIDEST = 20.0  # of a logarithm: says no less than infinity, which JSON does not know


@dataclass(frozen=True)
class Interval:
    """A figure and the bootstrap interval that it lies in.

    Args:
        value: From all samples.
        low: Lower end of the interval.
        high: Upper end.
        level: Share of such intervals that hold the truth.
    """

    value: float
    low: float
    high: float
    level: float = LEVEL

    def to_json(self) -> dict[str, float]:
        return asdict(self)


class Ratio(Interval):
    """How many times the time of the other one takes."""

    def inverse(self) -> Ratio:
        """The same seen from the other side."""
        return Ratio(1 / self.value, 1 / self.high, 1 / self.low, self.level)


def median_interval(rounds: Rounds, *, seed: int = 0, level: float = LEVEL) -> Interval | None:
    """Median of all calls, in the samples' unit; None below two calls, of which nothing can be said.

    Args:
        rounds: Few of them give a wide interval. A single round is cut into consecutive blocks, which only see what
            changes within it: the interval is then too narrow.
        seed: Of the draws.
        level: Of the interval.
    """
    blocks = _blocks(rounds)
    if not blocks:
        return None
    value = float(np.median(np.concatenate(blocks)))
    if len(blocks) < LEAST_BLOCKS:
        return _of_few(value, [_medians(blocks)], level)
    return _interval(value, resampled_medians(blocks, _draw(len(blocks), seed)), len(blocks), level)


def mean_interval(rounds: Rounds, *, seed: int = 0, level: float = LEVEL) -> Interval | None:
    """Mean of all calls, likewise: what throughput follows from, since it has to live with every slow call."""
    blocks = _blocks(rounds)
    if not blocks:
        return None
    sums, counts = np.array([part.sum() for part in blocks]), np.array([len(part) for part in blocks])
    value = float(sums.sum() / counts.sum())
    if len(blocks) < LEAST_BLOCKS:
        return _of_few(value, [sums / counts], level)
    picked = _draw(len(blocks), seed)
    return _interval(value, (picked @ sums) / (picked @ counts), len(blocks), level)


def paired_ratio(top: Rounds, bottom: Rounds, *, seed: int = 0, level: float = LEVEL) -> Ratio | None:
    """Median of the rounds' ratios of medians, for rounds taken at the same time; None where it is not defined.

    It is not the quotient of the two overall medians, though it is close to it on a quiet machine. Where a load comes
    and goes, an overall median lies among the quiet rounds for one candidate and among the loaded ones for the other,
    and their quotient is off by as much as the load costs. Within a round both saw the same machine.

    Args:
        top: Numerator, round by round.
        bottom: Denominator; round i was taken beside round i of the numerator. Rounds that only one has are ignored.
        seed: Of the draws.
        level: Of the interval.
    """
    pairs = [(one, other) for one, other in zip(top, bottom, strict=False) if len(one) and len(other)]
    if len(pairs) == 1:
        return unpaired_ratio([pairs[0][0]], [pairs[0][1]], seed=seed, level=level)
    medians = np.array([[np.median(part) for part in pair] for pair in pairs])
    if not pairs or not (medians > 0).all():
        return None
    ratios = medians[:, 0] / medians[:, 1]
    value = float(np.median(ratios))
    if len(ratios) < LEAST_BLOCKS:
        return _as_ratio(_of_few(value, [ratios], level))
    rng = np.random.default_rng(seed)
    drawn = np.median(ratios[rng.integers(len(pairs), size=(REPEATS, len(pairs)))], axis=1)
    return _as_ratio(_interval(value, drawn, len(pairs), level))


def unpaired_ratio(top: Rounds, bottom: Rounds, *, seed: int = 0, level: float = LEVEL) -> Ratio | None:
    """Quotient of the overall medians, for rounds of different runs; each side's rounds are drawn for themselves."""
    above, below = _blocks(top), _blocks(bottom)
    if not above or not below:
        return None
    values = [float(np.median(np.concatenate(blocks))) for blocks in (above, below)]
    if min(values) <= 0:
        return None
    if min(len(above), len(below)) < LEAST_BLOCKS:
        return _as_ratio(_of_few(values[0] / values[1], [_medians(above), _medians(below)], level))
    tops = resampled_medians(above, _draw(len(above), seed))
    bottoms = resampled_medians(below, _draw(len(below), seed + 1))
    if (bottoms <= 0).any():
        return None
    return _as_ratio(_interval(values[0] / values[1], tops / bottoms, min(len(above), len(below)), level))


def paired_change(top: Rounds, bottom: Rounds, old_top: Rounds, old_bottom: Rounds, *, seed: int = 0) -> Ratio | None:
    """How a ratio of two candidates changed between two runs: `paired_ratio` now by that of before.

    In each run the two took turns, so what slowed a whole run cancels out. Each run's rounds are drawn for themselves.

    Args:
        top: Numerator of now, round by round.
        bottom: Denominator of now, of the same rounds.
        old_top: Numerator of before.
        old_bottom: Denominator of before.
        seed: Of the draws.

    Returns:
        The change with its interval; None where it is not defined.
    """
    now, old = _round_ratios(top, bottom), _round_ratios(old_top, old_bottom)
    if now is None or old is None:
        return None
    value = float(np.median(now) / np.median(old))
    least = min(len(now), len(old))
    if least < LEAST_BLOCKS:
        return _as_ratio(_of_few(value, [now, old], LEVEL))
    rng = np.random.default_rng(seed)
    above, below = (np.median(side[rng.integers(len(side), size=(REPEATS, len(side)))], axis=1) for side in (now, old))
    return _as_ratio(_interval(value, above / below, least, LEVEL))


def _round_ratios(top: Rounds, bottom: Rounds) -> Floats | None:
    """Ratios of the rounds' medians, or of consecutive parts of a single round; None where one is not defined."""
    pairs = [(one, other) for one, other in zip(top, bottom, strict=False) if len(one) and len(other)]
    sides = [_blocks(side) for side in zip(*pairs, strict=True)]
    if not sides:
        return None
    count = min(len(side) for side in sides)
    above, below = (_medians(side[:count]) for side in sides)
    return above / below if (above > 0).all() and (below > 0).all() else None


def resampled_medians(blocks: Sequence[npt.NDArray[np.int64]], picked: npt.NDArray[np.int64]) -> Floats:
    """Median of the samples of drawn blocks, for many draws at once.

    Sorting every draw would take seconds for fast candidates. Instead all samples and those of each block are sorted
    once; the median of each draw is then found by bisection among all, counting in each block what does not exceed it.

    Args:
        blocks: Samples of each block; none is empty.
        picked: How often each draw has each block (draws, blocks).

    Returns:
        (draws,)
    """
    ordered, each = np.sort(np.concatenate(blocks)), [np.sort(part) for part in blocks]
    totals = picked @ np.array([len(part) for part in blocks])

    def at_rank(rank: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        low, high = np.zeros(len(picked), dtype=np.int64), np.full(len(picked), len(ordered) - 1)
        while (low < high).any():
            middle = (low + high) // 2
            upto = np.stack([np.searchsorted(part, ordered[middle], side="right") for part in each], axis=1)
            enough = (upto * picked).sum(axis=1) > rank
            low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
        found: npt.NDArray[np.int64] = ordered[low]
        return found

    medians: Floats = (at_rank((totals - 1) // 2) + at_rank(totals // 2)) / 2
    return medians


def find_spikes(rounds: Rounds) -> tuple[tuple[int, int], ...]:
    """Calls that took much longer than their round, as (round, call). They are marked, never left out."""
    found = []
    for index, part in enumerate(rounds):
        if len(part) == 0:
            continue
        values = np.asarray(part, dtype=np.float64)
        middle = float(np.median(values))
        sigma = _SIGMA_PER_MAD * float(np.median(np.abs(values - middle)))
        bound = middle + max(SPIKE_SHARE * middle, SPIKE_SIGMAS * sigma)
        found += [(index, int(call)) for call in np.flatnonzero(values > bound)]
    return tuple(found)


def rank_correlation(values: Sequence[float]) -> float:
    """How steadily values rise (1) or fall (-1) with their place: Spearman's coefficient, ties of equal rank."""
    _, place, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    if len(values) < 3 or len(counts) < 2:
        return 0.0
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float(np.corrcoef(ranks, np.arange(len(values)))[0, 1])


def _blocks(rounds: Rounds) -> list[npt.NDArray[np.int64]]:
    """What is drawn: rounds, or consecutive parts of a single one."""
    taken = [np.asarray(part, dtype=np.int64) for part in rounds if len(part)]
    if len(taken) == 1:
        return list(np.array_split(taken[0], min(BLOCKS_OF_ONE_ROUND, len(taken[0]))))
    return taken


def _draw(blocks: int, seed: int) -> npt.NDArray[np.int64]:
    """How often each draw, with replacement, has each block (draws, blocks)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=REPEATS)


def _medians(blocks: Sequence[npt.NDArray[np.int64]]) -> Floats:
    return np.array([np.median(part) for part in blocks], dtype=np.float64)


def _of_few(value: float, sides: Sequence[Floats], level: float) -> Interval | None:
    """Student's interval, for too few rounds to draw from; Welch's for two sides. None for a single call.

    Args:
        value: The figure; for two sides a quotient.
        sides: Figure of each round; of numerator and denominator where rounds were taken apart.
        level: Of the interval.
    """
    if any(len(side) < 2 or (side <= 0).any() for side in sides):
        return None
    errors = [float(np.log(side).var(ddof=1)) / len(side) for side in sides]
    terms = [error**2 / (len(side) - 1) for error, side in zip(errors, sides, strict=True)]
    if not sum(terms) > 0:
        return Interval(value, value, value, level)
    width = student_quantile(level, sum(errors) ** 2 / sum(terms)) * math.sqrt(sum(errors))
    spread = math.exp(min(width, _WIDEST))
    return Interval(value, value / spread, value * spread, level)


def _interval(value: float, drawn: Floats, blocks: int, level: float) -> Interval:
    tail = 100 * expanded_tail(level, blocks)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(value, min(float(low), value), max(float(high), value), level)


def _as_ratio(found: Interval | None) -> Ratio | None:
    return None if found is None else Ratio(found.value, found.low, found.high, found.level)


def expanded_tail(level: float, blocks: int) -> float:
    """Share of draws below the interval: less than half of 1 - level where blocks are few.

    A bootstrap of n blocks underestimates a standard error by sqrt((n-1)/n) and knows nothing of Student's t; with ten
    rounds a plain 95 % interval holds the truth in about nine cases of ten. Expanded percentiles make up for both (T.
    Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015).

    Args:
        level: Of the interval.
        blocks: `LEAST_BLOCKS` at the least: below, no interval of drawn rounds keeps the level.
    """
    return NormalDist().cdf(-student_quantile(level, blocks - 1) * math.sqrt(blocks / (blocks - 1)))


def student_quantile(level: float, freedom: float) -> float:
    """How many standard errors on both sides hold the truth in so many cases, for a spread that is estimated too.

    Args:
        level: Share of cases.
        freedom: Degrees of freedom, 1 or more.
    """
    if freedom < 2:  # exact for 1, and on the safe side above it
        return math.tan(math.pi * level / 2)
    if freedom < 3:  # likewise
        return level * math.sqrt(2 / (1 - level**2))
    # From the normal quantile (Abramowitz and Stegun, 26.7.5): within one per cent from 3 on.
    z = NormalDist().inv_cdf((1 + level) / 2)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
