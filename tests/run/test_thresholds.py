"""Thresholds against brute force: the definitions written out, on small arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vexport.run.calibrate import StreamedHistogram
from vexport.run.thresholds import (
    LEVELS,
    METHODS,
    Histogram,
    choose_threshold,
    entropy_divergences,
    mse_errors,
)


def histogram_of(values: np.ndarray, bins: int = 512) -> Histogram:
    largest = float(np.abs(values).max())
    width = largest / (bins - 0.5)
    counts = np.bincount((np.abs(values) / width).astype(int), minlength=bins)
    return Histogram(counts, width, largest)


@pytest.fixture(params=["normal", "relu", "outliers", "uniform"])
def values(request: pytest.FixtureRequest) -> np.ndarray:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=20_000)
    found = {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "outliers": np.concatenate([normal, [40.0, -35.0]]),
        "uniform": rng.uniform(-1, 1, 20_000),
    }
    return np.asarray(found[request.param])


def divergence(counts: np.ndarray, kept: int) -> float:
    """As the talk writes it: P clipped to `kept` bins, Q the same in 128 groups, spread over non-empty bins."""
    c = counts.astype(float)
    c[0] = c[1]
    p = c[:kept].copy()
    p[-1] += c[kept:].sum()
    q = np.zeros(kept)
    groups = np.arange(kept) * LEVELS // kept
    for group in range(LEVELS):
        members = (groups == group) & (c[:kept] > 0)
        if members.any():
            q[members] = c[:kept][members].sum() / members.sum()
    p, q = p / p.sum(), q / q.sum()
    if ((p > 0) & (q == 0)).any():
        return math.inf
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())


def test_entropy_is_the_definition(values: np.ndarray) -> None:
    histogram = histogram_of(values)
    found = entropy_divergences(histogram.counts)
    wanted = [divergence(histogram.counts, kept) for kept in range(LEVELS, len(histogram.counts) + 1)]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    inside = np.cumsum(histogram.counts)[LEVELS - 1 :] >= 0.99 * histogram.values
    allowed = np.where(inside, wanted, math.inf)
    best = LEVELS + max(index for index, value in enumerate(allowed) if value <= min(allowed) + 1e-15)
    threshold = choose_threshold(histogram, "entropy")
    assert threshold == pytest.approx(min(histogram.largest, best * histogram.width))


def test_mse_is_the_definition(values: np.ndarray) -> None:
    histogram = histogram_of(values)
    edges = np.append(histogram.width * np.arange(LEVELS, len(histogram.counts)), histogram.largest)

    def error(threshold: float) -> float:
        total = 0.0
        for index, count in enumerate(histogram.counts):
            centre = min((index + 0.5) * histogram.width, histogram.largest) if index else 0.0
            step = threshold / 127
            total += count * (min(round(centre / step), 127) * step - centre) ** 2
        return total / histogram.values

    few = edges[:: len(edges) // 5]
    np.testing.assert_allclose(mse_errors(histogram, few), [error(edge) for edge in few], rtol=1e-9)
    found = mse_errors(histogram, edges)
    assert choose_threshold(histogram, "mse") == pytest.approx(edges[found.argmin()])


def test_mse_is_near_the_best_for_the_values_themselves(values: np.ndarray) -> None:
    """Not only for the histogram: rounding the values with this threshold costs hardly more than with the best one."""

    def error(threshold: float) -> float:
        step = threshold / 127
        return float(((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2).mean())

    histogram = histogram_of(values, 4096)
    best = min(error(top) for top in np.linspace(histogram.largest / 32, histogram.largest, 500))
    assert error(choose_threshold(histogram, "mse")) < 1.05 * best


def test_percentile_holds_its_share() -> None:
    values = np.linspace(-1, 1, 100_001)
    threshold = choose_threshold(histogram_of(values, 4096), "percentile")
    assert threshold == pytest.approx(0.9999, abs=1e-3)
    with_outlier = np.append(values, 50.0)
    histogram = histogram_of(with_outlier, 4096)
    assert choose_threshold(histogram, "percentile") < 1.1
    assert choose_threshold(histogram, "minmax") == 50.0
    inside = np.abs(with_outlier) <= choose_threshold(histogram, "percentile")
    assert inside.mean() >= 0.9999


def test_percentile_is_that_of_the_values_themselves(values: np.ndarray) -> None:
    histogram = histogram_of(values, 4096)
    exact = float(np.percentile(np.abs(values), 99.99))
    assert 0 <= choose_threshold(histogram, "percentile") - exact <= histogram.width


def test_the_percentile_is_the_upper_edge_of_its_bin() -> None:
    """9999 of 10,000 values in the first 100 bins; one more among the largest is clipped, two are not."""
    counts = np.zeros(4096, np.int64)
    counts[:100] = 100
    counts[99] = 99
    counts[-1] = 1
    assert choose_threshold(Histogram(counts, 0.5, 2048.0), "percentile") == 50.0
    counts[[99, 3000]] = 98, 1
    assert choose_threshold(Histogram(counts, 0.5, 2048.0), "percentile") == 1500.5


@pytest.mark.parametrize(("beyond", "clipped"), [(0.008, True), (0.012, False), (0.3, False)])
def test_entropy_clips_one_in_a_hundred_at_the_most(beyond: float, clipped: bool) -> None:
    """All in one bin but for a few far away: by divergence alone, those would be clipped however many they are."""
    far = round(beyond * 100_000)
    values = np.concatenate([np.full(100_000 - far, 3.0), np.random.default_rng(0).normal(20, 1, far)])
    histogram = histogram_of(values, 4096)
    alone = (LEVELS + entropy_divergences(histogram.counts).argmin()) * histogram.width
    assert alone == pytest.approx(3, abs=2 * histogram.width)
    threshold = choose_threshold(histogram, "entropy")
    assert (threshold == alone) == clipped
    assert (values <= threshold).mean() >= 0.99


def test_how_fine_thresholds_are() -> None:
    """As the module says: one value far beyond all others makes bins wide."""
    normal = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    streamed = StreamedHistogram()
    streamed.add(normal, float(np.abs(normal).max()))
    assert choose_threshold(streamed.result(), "percentile") == pytest.approx(3.9, abs=0.1)
    streamed.add(np.array([1e5], np.float32), 1e5)
    found = streamed.result()
    assert choose_threshold(found, "percentile") == 32.0
    for method in ("entropy", "mse"):
        assert choose_threshold(found, method) >= LEVELS * 32.0  # type: ignore[arg-type]
    tiny = StreamedHistogram()
    tiny.add(normal * np.float32(1e-38), float(np.abs(normal * np.float32(1e-38)).max()))
    assert {choose_threshold(tiny.result(), method) for method in METHODS} == {tiny.result().largest}


def test_an_outlier_is_clipped_by_all_but_minmax() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(size=200_000), [25.0]])
    histogram = histogram_of(values, 4096)
    found = {method: choose_threshold(histogram, method) for method in METHODS}
    assert found["minmax"] == 25.0
    assert all(2 < found[method] < 15 for method in ("percentile", "entropy", "mse")), found


def test_entropy_keeps_what_lies_far_from_zero() -> None:
    """Nothing near 0: all values in the last bin that is kept would have no divergence at all."""
    values = np.random.default_rng(0).normal(5, 1, 5000)
    histogram = histogram_of(values, 4096)
    assert entropy_divergences(histogram.counts).argmin() < 3000
    assert (np.abs(values) <= choose_threshold(histogram, "entropy")).mean() >= 0.99


@pytest.mark.parametrize("method", METHODS)
def test_odd_histograms(method: str) -> None:
    zeros = Histogram(np.array([1000]), 0.0, 0.0)
    assert choose_threshold(zeros, method) == 0.0  # type: ignore[arg-type]
    counts = np.zeros(4096, np.int64)
    counts[[0, 4095]] = 1_000_000, 1
    two = Histogram(counts, 1 / 4096, 0.99999)
    assert 0 < choose_threshold(two, method) <= 0.99999  # type: ignore[arg-type]
    one = np.zeros(3000, np.int64)
    one[2999] = 7
    assert choose_threshold(Histogram(one, 1.0, 2999.5), method) == pytest.approx(2999.5, rel=1e-3)  # type: ignore[arg-type]
    short = Histogram(np.array([5, 0, 1]), 1.0, 2.5)
    assert 0 < choose_threshold(short, method) <= 2.5  # type: ignore[arg-type]
