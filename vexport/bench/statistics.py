"""Figures of samples that come in rounds: arrays in, numbers out.

Calls of one round share the machine's state of that moment: they are no independent samples, rounds nearly are. So the
bootstrap draws whole rounds (a block bootstrap).
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

# A spike is over both: a share above its round's median, and this many robust standard deviations above it. The first
# alone would mark the ordinary spread of a noisy candidate, the second alone the steps of the clock in a quiet one.
SPIKE_SHARE = 0.25
SPIKE_SIGMAS = 6.0
_SIGMA_PER_MAD = 1.4826  # of a normal distribution


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
    """Median of all calls, in the samples' unit; None where there are none.

    Args:
        rounds: One round at least for a figure; few rounds give a wide interval. A single round is cut into
            consecutive blocks, which only see what changes within it: the interval is then too narrow.
        seed: Of the draws.
        level: Of the interval.
    """
    blocks = _blocks(rounds)
    if not blocks:
        return None
    value = float(np.median(np.concatenate(blocks)))
    return _interval(value, resampled_medians(blocks, _draw(len(blocks), seed)), len(blocks), level)


def mean_interval(rounds: Rounds, *, seed: int = 0, level: float = LEVEL) -> Interval | None:
    """Mean of all calls, likewise: what throughput follows from, since it has to live with every slow call."""
    blocks = _blocks(rounds)
    if not blocks:
        return None
    picked = _draw(len(blocks), seed)
    sums, counts = np.array([part.sum() for part in blocks]), np.array([len(part) for part in blocks])
    return _interval(sums.sum() / counts.sum(), (picked @ sums) / (picked @ counts), len(blocks), level)


def paired_ratio(top: Rounds, bottom: Rounds, *, seed: int = 0, level: float = LEVEL) -> Ratio | None:
    """Median of the rounds' ratios of medians, for rounds taken at the same time; None where it is not defined.

    It is not the quotient of the two overall medians, though it is close to it on a quiet machine. Where a load comes
    and goes, an overall median lies among the quiet rounds for one candidate and among the loaded ones for the other,
    and their quotient is off by as much as the load costs. Within a round both saw the same machine.

    Args:
        top: Numerator, round by round.
        bottom: Denominator; round i was taken beside round i of the numerator. Further rounds of one are ignored.
        seed: Of the draws.
        level: Of the interval.
    """
    shared = min(len(top), len(bottom))
    if shared == 1:
        return unpaired_ratio(top[:1], bottom[:1], seed=seed, level=level)
    medians = np.array([[np.median(part) for part in rounds[:shared]] for rounds in (top, bottom)])
    if shared == 0 or not (medians > 0).all():
        return None
    ratios = medians[0] / medians[1]
    rng = np.random.default_rng(seed)
    drawn = np.median(ratios[rng.integers(shared, size=(REPEATS, shared))], axis=1)
    return _as_ratio(_interval(float(np.median(ratios)), drawn, shared, level))


def unpaired_ratio(top: Rounds, bottom: Rounds, *, seed: int = 0, level: float = LEVEL) -> Ratio | None:
    """Quotient of the overall medians, for rounds of different runs; each side's rounds are drawn for themselves."""
    above, below = _blocks(top), _blocks(bottom)
    if not above or not below:
        return None
    values = [float(np.median(np.concatenate(blocks))) for blocks in (above, below)]
    tops = resampled_medians(above, _draw(len(above), seed))
    bottoms = resampled_medians(below, _draw(len(below), seed + 1))
    if min(values) <= 0 or (bottoms <= 0).any():
        return None
    return _as_ratio(_interval(values[0] / values[1], tops / bottoms, min(len(above), len(below)), level))


def resampled_medians(blocks: Sequence[npt.NDArray[np.int64]], picked: npt.NDArray[np.int64]) -> Floats:
    """Median of the samples of drawn blocks, for many draws at once.

    Sorting every draw would take seconds for fast candidates. Instead all samples are sorted once, with the number of
    samples per block up to each; the median of each draw is then found by bisection.

    Args:
        blocks: Samples of each block; none is empty.
        picked: How often each draw has each block (draws, blocks).

    Returns:
        (draws,)
    """
    pooled = np.concatenate(blocks)
    order = np.argsort(pooled, kind="stable")
    ordered = pooled[order]
    owner = np.repeat(np.arange(len(blocks)), [len(part) for part in blocks])[order]
    upto = np.zeros((len(ordered), len(blocks)), dtype=np.int64)  # samples of each block at or below each place
    upto[np.arange(len(ordered)), owner] = 1
    np.cumsum(upto, axis=0, out=upto)
    totals = picked @ upto[-1]

    def at_rank(rank: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        low, high = np.zeros(len(picked), dtype=np.int64), np.full(len(picked), len(ordered) - 1)
        while (low < high).any():
            middle = (low + high) // 2
            enough = (upto[middle] * picked).sum(axis=1) > rank
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
    """How steadily values rise (1) or fall (-1) with their place: Spearman's coefficient, ties taken in order."""
    if len(values) < 3:
        return 0.0
    ranks = np.argsort(np.argsort(np.asarray(values), kind="stable"), kind="stable")
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


def _interval(value: float, drawn: Floats, blocks: int, level: float) -> Interval:
    tail = 100 * expanded_tail(level, blocks)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(value, min(float(low), value), max(float(high), value), level)


def _as_ratio(found: Interval) -> Ratio:
    return Ratio(found.value, found.low, found.high, found.level)


def expanded_tail(level: float, blocks: int) -> float:
    """Share of draws below the interval: less than half of 1 - level where blocks are few.

    A bootstrap of n blocks underestimates a standard error by sqrt((n-1)/n) and knows nothing of Student's t; with ten
    rounds a plain 95 % interval holds the truth in about nine cases of ten. Expanded percentiles make up for both (T.
    Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015). From five rounds on
    the stated level is about kept; with two or three no interval of drawn rounds can.
    """
    normal = NormalDist()
    if blocks < 3:
        return 0.0  # all that was drawn: t of so few is past what a thousand draws resolve
    z, freedom = normal.inv_cdf((1 + level) / 2), blocks - 1
    # Student's quantile from the normal one (Abramowitz and Stegun, 26.7.5).
    t = (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
    return normal.cdf(-t * math.sqrt(blocks / freedom))
