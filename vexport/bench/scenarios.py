"""Single-stream latency and throughput over batch sizes.

The percentile rule is that of the SingleStream scenario of MLPerf Inference (MLCommons, inference_rules.adoc, Scenarios
and the appendix on early stopping): the 90th percentile, as an early-stopping estimate. Only that rule is taken over.
MLPerf also asks for its load generator, 600 seconds and its own models: these are no MLPerf results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vexport.bench.samples import NS_PER_MS, Samples
from vexport.bench.statistics import Interval

SINGLE_STREAM_RULE = "90th percentile by the early-stopping rule of MLPerf Inference's SingleStream; no MLPerf result"
PERCENTILE = 0.9
CONFIDENCE = 0.99
NEARLY_BEST = 0.95


@dataclass(frozen=True)
class SingleStream:
    """Latency of one request after another.

    Args:
        count: Calls.
        p90_ms: Their 90th percentile.
        estimate_ms: The percentile that holds with 99 % confidence; None below 64 calls, which are too few to tell.
        discarded: How many of the slowest calls lie above the estimate.
    """

    count: int
    p90_ms: float
    estimate_ms: float | None
    discarded: int
    rule: str = SINGLE_STREAM_RULE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def single_stream(samples: Samples) -> SingleStream:
    """The percentile of a candidate that takes one image per call."""
    over = overlatency_count(samples.count)
    if over < 1:
        return SingleStream(samples.count, samples.p90_ms, None, 0)
    estimate = float(np.sort(samples.ns)[samples.count - over]) / NS_PER_MS
    return SingleStream(samples.count, samples.p90_ms, estimate, over - 1)


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
        by_batch: Batch size to samples, best of one run of the clock, so that the sizes took turns.
    """
    rates = {
        batch: rate
        for batch in sorted(by_batch)
        if by_batch[batch].error is None and (rate := by_batch[batch].per_second(batch)) is not None
    }
    best = max((rate.value for rate in rates.values()), default=0.0)
    enough = next((batch for batch, rate in rates.items() if rate.value >= NEARLY_BEST * best), None)
    return [Throughput(batch, rate, by_batch[batch].median_ms, batch == enough) for batch, rate in rates.items()]
