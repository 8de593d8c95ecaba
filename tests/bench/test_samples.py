"""Samples: figures of raw durations, doubts in words, and a round trip through JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from bench.fake import MS, samples
from vexport.bench.clock import Samples, WarmUp, ratio
from vexport.bench.nvml import GpuState
from vexport.bench.watch import Conditions


def test_percentiles_are_numpys() -> None:
    values = list(np.random.default_rng(0).integers(1, 100, 501).astype(float))
    taken = samples(values)
    for percent, figure in ((50, taken.median_ms), (90, taken.p90_ms), (95, taken.p95_ms), (99, taken.p99_ms)):
        assert figure == pytest.approx(np.percentile(values, percent))
    assert taken.mean_ms == pytest.approx(np.mean(values))
    assert taken.cv == pytest.approx(np.std(values) / np.mean(values))


def test_intervals_are_in_the_figures_units() -> None:
    taken = samples(*[[2.0, 2.0], [2.0, 4.0], [4.0, 4.0]] * 2)
    median = taken.median_interval_ms()
    assert median is not None
    assert (median.low, median.value, median.high) == (2, 3, 4)
    rate = taken.per_second(8)
    assert rate is not None
    assert 2000 <= rate.low < 2300
    assert 3300 < rate.high <= 4000
    assert rate.value == pytest.approx(8000 / 3)
    assert samples().median_interval_ms() is None
    assert samples([0, 0]).per_second() is None


CUT_OFF = WarmUp(9.5, 40, False)


def twice(*calls_ms: float) -> Samples:
    """Two rounds of the same calls."""
    return samples(calls_ms, calls_ms)


@pytest.mark.parametrize(
    ("taken", "why"),
    [
        (samples([10, 10, 10], [10.9, 10.9, 10.9]), None),
        (samples([10, 10, 10], [11.2, 11.2, 11.2]), "drift: the rounds' medians lie between 10 and 11.2 ms (11%)"),
        (samples([10] * 5, [11] * 5, [12] * 5), "drift: the rounds' medians lie between 10 and 12 ms (18%), rising"),
        (samples([12] * 5, [11] * 5, [10] * 5), "drift: the rounds' medians lie between 10 and 12 ms (18%), falling"),
        (samples([10] * 5, [13] * 5, [10] * 5), "drift: the rounds' medians lie between 10 and 13 ms (30%), to and"),
        # One slow round and one fast one of ten: the median is not the worse for it. Two slow ones are a drift.
        (samples([13] * 5, *[[10] * 5] * 8, [8] * 5), None),
        (samples([13] * 5, *[[10] * 5] * 8, [13] * 5), "drift: the rounds' medians lie between 10 and 13 ms (30%), to"),
        (samples([13] * 5, *[[10] * 5] * 8), "drift: the rounds' medians lie between 10 and 13 ms (30%), to and"),
        (twice(10, 10, 10, 10, 10, 16), "spikes: 2 of 12 calls, up to 1.6 times the median, added 9% of the time"),
        (samples([10] * 500 + [16], [10] * 500), None),  # one spike in a thousand calls adds next to nothing
        (twice(10, 14, 7, 12, 8, 13), "spread: coefficient of variation 0.24"),
        (samples([10], error="RuntimeError: no"), "error: RuntimeError: no"),
        (samples(), "no call was measured"),
        (samples([0, 0, 0]), "too short: no call took a time that the clock can see"),
        (samples([10] * 500), "rounds: there is one only"),
        (replace(twice(*[0.001] * 9), overhead_ns=50.0), "too short: the clock's own 50 ns are 5.0% of the median"),
        (
            replace(samples([10.8] * 9, [10] * 9), warm_up=CUT_OFF),
            "warm-up: still changing after 9.5 s, and the first round took 1.08 times the others",
        ),
        (replace(samples([9.2] * 9, [10] * 9, [10] * 9), warm_up=CUT_OFF), "warm-up: still changing after 9.5 s"),
        (replace(samples([10.3] * 9, [10] * 9), warm_up=CUT_OFF), None),  # its windows differed by chance
        (replace(samples([10.8] * 9, [10] * 9), warm_up=replace(CUT_OFF, stable=True)), None),
        (replace(samples([10.8] * 9, [10] * 9), warm_up=replace(CUT_OFF, stable=None)), None),
        (
            replace(twice(*[10] * 9), conditions=(Conditions(1.0, 0.5, 2, others_s=1.2),)),
            "load: other processes kept 1.2 of 2 cores busy",
        ),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_unstable_runs_say_why(taken: Samples, why: str | None) -> None:
    if why is None:
        assert taken.unstable_because == ()
        assert not taken.unstable
    else:
        assert taken.unstable
        (said,) = taken.unstable_because
        assert said.startswith(why)


def test_all_doubts_are_told() -> None:
    calls = [8, 9, 10, 11, 12, 10, 8, 12, 60]
    rough = samples(calls, [1.5 * ms for ms in calls])
    kinds = [why.partition(":")[0] for why in rough.unstable_because]
    assert kinds == ["spikes", "spread", "drift"]


def test_a_round_trip_through_json_keeps_everything() -> None:
    gpu = GpuState(1980, 2619, 51, 310.5, 1, ("power cap",))
    taken = Samples(
        "a",
        ((10 * MS, 11 * MS), (10 * MS,)),
        "RuntimeError: no",
        WarmUp(1.5, 30, True, (1.0, 2.0)),
        {"device": ((5, 6), (7,))},
        (Conditions(1.0, 0.5, 2, 0.1, 0.0, 2600.0, 0, 0.0, gpu), Conditions(1.0, 0.5)),
        71.5,
    )
    again = Samples.from_json(json.loads(json.dumps(taken.to_json(), allow_nan=False)))
    assert again == taken
    assert Samples.from_json(samples([1.0]).to_json()) == samples([1.0])


def test_the_ratio_of_constants_has_no_width() -> None:
    found = ratio(samples([3] * 5, [3] * 5), samples([2] * 5, [2] * 5))
    assert found is not None
    assert (found.value, found.low, found.high) == (1.5, 1.5, 1.5)


def test_drift_that_both_share_does_not_widen_the_interval() -> None:
    """Rounds are drawn in pairs: a machine that slows down slows both."""
    speeds = [1.0, 1.2, 1.5, 2.0, 3.0]
    a, b = samples(*[[4 * s] * 9 for s in speeds]), samples(*[[2 * s] * 9 for s in speeds])
    shared, strangers = ratio(a, b), ratio(a, b, paired=False)
    reverse = ratio(a, samples(*[[2 * s] * 9 for s in reversed(speeds)]))
    assert shared is not None
    assert strangers is not None
    assert reverse is not None
    assert (shared.low, shared.high) == (2, 2)
    assert strangers.low < 1.5 < 2.5 < strangers.high
    assert reverse.low < 1.5 < 2.5 < reverse.high


def test_the_interval_is_seeded_and_holds_the_truth() -> None:
    rng = np.random.default_rng(0)
    a, b = (samples(*[list(scale * rng.lognormal(0, 0.1, 40)) for _ in range(10)]) for scale in (2, 1))
    found = ratio(a, b)
    assert found is not None
    assert found == ratio(a, b)
    assert found != ratio(a, b, seed=1)
    assert found.low < 2 < found.high
    assert found.low <= found.value <= found.high
    assert found.high - found.low < 0.2


def test_one_round_still_gives_a_width() -> None:
    rng = np.random.default_rng(0)
    a, b = (samples(list(rng.uniform(1, 2, 50))) for _ in range(2))
    found = ratio(a, b)
    assert found is not None
    assert found.low < found.value < found.high


@pytest.mark.parametrize("bad", [samples(), samples([1.0], error="RuntimeError"), samples([0, 0])])
def test_there_is_no_ratio_with_what_failed(bad: Samples) -> None:
    assert ratio(bad, samples([1.0])) is None
    assert ratio(samples([1.0]), bad) is None
