"""Single-stream latency and throughput over batch sizes.

The percentile rule is that of MLPerf Inference (MLCommons, inference_rules.adoc, Scenarios and the appendix on early
stopping): the 90th percentile of the SingleStream scenario, and the 99th of MultiStream and Server, as early-stopping
estimates. Only that rule is taken over. MLPerf also asks for its load generator, 600 seconds and its own models: these
are no MLPerf results.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np

from vexport.bench.samples import NS_PER_MS, Samples
from vexport.bench.statistics import Interval

SINGLE_STREAM_RULE = "90th percentile by the early-stopping rule of MLPerf Inference's SingleStream; no MLPerf result"
PERCENTILE, FAR_PERCENTILE = 0.9, 0.99
CONFIDENCE = 0.99
NEARLY_BEST = 0.95

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class SingleStream:
    """Latency of one request after another.

    Args:
        count: Calls.
        p90_ms: Their 90th percentile.
        estimate_ms: The percentile that holds with 99 % confidence; None below 64 calls, which are too few to tell.
        discarded: How many of the slowest calls lie above the estimate.
        p99_ms: Their 99th percentile; of few calls it is little else than the slowest one.
        p99_estimate_ms: The one that holds with 99 % confidence; None below 662 calls.
        rule: Whose it is.
    """

    count: int
    p90_ms: float
    estimate_ms: float | None
    discarded: int
    p99_ms: float
    p99_estimate_ms: float | None
    rule: str = SINGLE_STREAM_RULE

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for what is not a number, which JSON does not know."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def single_stream(samples: Samples) -> SingleStream:
    """The percentiles of a candidate that takes one image per call."""
    return SingleStream(
        samples.count,
        samples.p90_ms,
        percentile_estimate_ms(samples, PERCENTILE),
        max(0, overlatency_count(samples.count) - 1),
        samples.p99_ms,
        percentile_estimate_ms(samples, FAR_PERCENTILE),
    )


def percentile_estimate_ms(samples: Samples, percentile: float) -> float | None:
    """A bound that so large a share of all calls keeps, with 99 % confidence; None for fewer than `least_count`.

    Args:
        samples: Of independent calls, as the rule has it. Calls of one round are not quite.
        percentile: As 0.9.
    """
    over = overlatency_count(samples.count, percentile=percentile)
    return float(np.sort(samples.ns)[samples.count - over]) / NS_PER_MS if over else None


@cache
def least_count(percentile: float) -> int:
    """Calls from which on a percentile can be told with 99 % confidence: 64 for the 90th, 662 for the 99th.

    Args:
        percentile: Above 0, below 1.
    """
    count = 1
    while not overlatency_count(count, percentile=percentile):
        count += 1
    return count


def overlatency_count(count: int, *, percentile: float = PERCENTILE, confidence: float = CONFIDENCE) -> int:
    """How many of so many calls may exceed a bound that the percentile keeps with this confidence.

    The greatest t such that a system just failing, of whose calls a share of 1 - percentile exceeds the bound, would
    show t or fewer with probability 1 - confidence at most: F(t; count, 1 - percentile) <= 1 - confidence, F being the
    binomial distribution. One of them is then the bound itself: t - 1 calls are discarded.

    Returns:
        t; 0 where even one would be too many.
    """
    share, total, found = 1 - percentile, 0.0, -1
    log = math.lgamma(count + 1)
    for over in range(count + 1):
        chance = log - math.lgamma(over + 1) - math.lgamma(count - over + 1)
        total += math.exp(chance + over * math.log(share) + (count - over) * math.log1p(-share))
        if total > 1 - confidence:
            break
        found = over
    return max(0, found)


@dataclass(frozen=True)
class Throughput:
    """Images per second at one batch size.

    Args:
        batch: Images per call.
        images_per_s: By the mean duration, with its interval.
        latency_ms: Median of a call.
        nearly_best: Whether it is the smallest batch that reaches 95 % of the best throughput.
    """

    batch: int
    images_per_s: Interval
    latency_ms: float
    nearly_best: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def throughput(by_batch: Mapping[int, Samples]) -> list[Throughput]:
    """Throughput over batch sizes, smallest first; sizes that failed are missing.

    Args:
        by_batch: Batch size to samples. Of sizes that did not take turns, what the machine drifted by between them is
            in their differences and not in their intervals.
    """
    rates = {
        batch: rate
        for batch in sorted(by_batch)
        if by_batch[batch].error is None and (rate := by_batch[batch].per_second(batch)) is not None
    }
    best = max((rate.value for rate in rates.values()), default=0.0)
    enough = next((batch for batch, rate in rates.items() if rate.value >= NEARLY_BEST * best), None)
    return [Throughput(batch, rate, by_batch[batch].median_ms, batch == enough) for batch, rate in rates.items()]


def throughput_over_batches(measured: Iterable[tuple[K, int, Samples]]) -> dict[K, list[Throughput]]:
    """Throughput of whatever was measured at several batch sizes.

    Args:
        measured: What it is (all but the batch), images per call, and samples.

    Returns:
        Batch sizes of each, smallest first; nothing of what was measured at one size only.
    """
    by_key: dict[K, dict[int, Samples]] = {}
    for key, batch, samples in measured:
        by_key.setdefault(key, {}).setdefault(batch, samples)
    found = {key: throughput(by_batch) for key, by_batch in by_key.items()}
    return {key: rates for key, rates in found.items() if len(rates) > 1}
