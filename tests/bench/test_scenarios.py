"""Single stream and throughput."""

from __future__ import annotations

import json
import math

import pytest

from bench.fake import samples
from vexport.bench.scenarios import (
    least_count,
    overlatency_count,
    percentile_estimate_ms,
    single_stream,
    throughput,
    throughput_over_batches,
)


@pytest.mark.parametrize(
    ("count", "discarded"),
    # What MLPerf's load generator says of its own runs: the least count, and how many calls it would discard.
    [(64, 0), (2048, 172), (2116, 178), (2145, 181)],
)
def test_the_early_stopping_rule_is_mlperfs(count: int, discarded: int) -> None:
    assert overlatency_count(count) == discarded + 1


def test_the_least_counts_are_mlperfs() -> None:
    assert (overlatency_count(63), overlatency_count(64)) == (0, 1)
    assert (overlatency_count(661, percentile=0.99), overlatency_count(662, percentile=0.99)) == (0, 1)
    assert overlatency_count(0) == 0
    assert (least_count(0.9), least_count(0.99)) == (64, 662)


def test_the_estimate_is_the_greatest_of_the_calls_that_remain() -> None:
    taken = samples([float(value) for value in range(1, 2049)])
    found = single_stream(taken)
    assert (found.count, found.discarded, found.estimate_ms) == (2048, 172, 2048 - 172)
    assert found.p90_ms < 2048 - 172
    assert "no MLPerf result" in found.to_json()["rule"]


def test_too_few_calls_have_no_estimate() -> None:
    found = single_stream(samples([1.0] * 63))
    assert found.estimate_ms is None
    assert found.p90_ms == 1
    assert math.isnan(single_stream(samples()).p90_ms)
    assert json.dumps(single_stream(samples()).to_json(), allow_nan=False)


def test_the_99th_percentile_needs_ten_times_the_calls() -> None:
    calls = [float(value) for value in range(1, 663)]
    few, enough = single_stream(samples(calls[1:])), single_stream(samples(calls))
    assert few.p99_estimate_ms is None
    assert few.estimate_ms is not None
    assert enough.p99_estimate_ms == 662  # no call may be discarded yet
    assert enough.p99_ms < 662
    assert percentile_estimate_ms(samples(calls), 0.5) == pytest.approx(331, rel=0.1)


def test_throughput_counts_the_slow_calls() -> None:
    by_batch = {
        8: samples([10.0, 10.0, 10.0, 70.0], [10.0, 10.0, 10.0, 70.0]),
        1: samples([5.0] * 4, [5.0] * 4),
        16: samples([61.0] * 4, [61.0] * 4),
        32: samples([1.0], error="RuntimeError: out of memory"),
    }
    found = throughput(by_batch)
    assert [one.batch for one in found] == [1, 8, 16]
    assert [one.images_per_s.value for one in found] == [200, 320, pytest.approx(262.3, abs=0.1)]
    assert [one.latency_ms for one in found] == [5, 10, 61]
    assert [one.nearly_best for one in found] == [False, True, False]
    assert found[0].to_json()["images_per_s"]["low"] == 200


def test_the_smallest_batch_that_nearly_reaches_the_best_is_named() -> None:
    found = throughput({1: samples([10.0] * 2), 2: samples([10.2] * 2), 4: samples([20.1] * 2)})
    assert [one.nearly_best for one in found] == [False, True, False]
    assert throughput({}) == []


def test_batches_of_a_network_are_found_among_all_that_was_measured() -> None:
    small, large, failed = samples([10.0] * 9), samples([16.0] * 9), samples([1.0], error="RuntimeError: no memory")
    measured = [
        (("a", "FP32"), 2, large),
        (("b", "FP32"), 1, small),
        (("a", "FP32"), 1, small),
        (("a", "FP16"), 1, small),
        (("a", "FP32"), 4, failed),
        (("b", "FP32"), 2, failed),
    ]
    found = throughput_over_batches(measured)
    assert list(found) == [("a", "FP32")], "the others have one size only"
    assert [(one.batch, one.images_per_s.value, one.nearly_best) for one in found["a", "FP32"]] == [
        (1, 100, False),
        (2, 125, True),
    ]
