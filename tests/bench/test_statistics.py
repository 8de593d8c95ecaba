"""Bootstrap, spikes and trends: exact where they can be, and as often right as they say."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from vexport.bench.statistics import (
    Ratio,
    expanded_tail,
    find_spikes,
    mean_interval,
    median_interval,
    paired_ratio,
    rank_correlation,
    resampled_medians,
    student_quantile,
    unpaired_ratio,
)

Rounds = list[list[int]]


def test_resampled_medians_are_the_medians_of_the_drawn_samples() -> None:
    rng = np.random.default_rng(0)
    blocks = [rng.integers(1, 50, size) for size in (1, 4, 7, 2, 9)]
    picked = rng.multinomial(5, np.full(5, 0.2), size=300)
    wanted = [
        np.median(np.concatenate([np.tile(block, times) for block, times in zip(blocks, row, strict=True)]))
        for row in picked
    ]
    assert np.array_equal(resampled_medians(blocks, picked), wanted)


def loaded_rounds(rng: np.random.Generator, scale_ns: float, load: np.ndarray, calls: int) -> Rounds:
    """Rounds on a machine whose load changes from round to round."""
    noise = rng.normal(0, 0.02, len(load))
    return [
        [int(value) for value in scale_ns * np.exp(shared + own) * rng.lognormal(0, 0.05, calls)]
        for shared, own in zip(load, noise, strict=True)
    ]


@pytest.mark.parametrize("rounds", [2, 3, 4, 6, 10])
def test_intervals_hold_the_truth_about_as_often_as_they_say(rounds: int) -> None:
    """The true ratio is 2 and the true median 2 ms; calls of a round share its load, so drawing calls would fail."""
    rng, trials = np.random.default_rng(rounds), 150
    held = {"median": 0, "mean": 0, "paired": 0, "unpaired": 0}
    for trial in range(trials):
        load = rng.normal(0, 0.2, rounds)
        top = loaded_rounds(rng, 2e6, load, 20)
        beside = loaded_rounds(rng, 1e6, load, 30)
        apart = loaded_rounds(rng, 1e6, rng.normal(0, 0.2, rounds), 30)
        truth = {"median": 2e6, "mean": 2e6 * np.exp((0.2**2 + 0.02**2 + 0.05**2) / 2), "paired": 2, "unpaired": 2}
        found = {
            "median": median_interval(top, seed=trial),
            "mean": mean_interval(top, seed=trial),
            "paired": paired_ratio(top, beside, seed=trial),
            "unpaired": unpaired_ratio(top, apart, seed=trial),
        }
        for name, interval in found.items():
            assert interval is not None
            held[name] += interval.low <= truth[name] <= interval.high
    shares = {name: count / trials for name, count in held.items()}
    # Welch's degrees of freedom are on the safe side where they are few.
    assert all(0.88 <= share <= (0.995 if rounds > 2 else 1) for share in shares.values()), shares


def test_pairs_are_narrower_than_strangers() -> None:
    rng = np.random.default_rng(0)
    load = rng.normal(0, 0.3, 10)
    top, bottom = loaded_rounds(rng, 2e6, load, 20), loaded_rounds(rng, 1e6, load, 20)
    paired, unpaired = paired_ratio(top, bottom), unpaired_ratio(top, bottom)
    assert paired is not None
    assert unpaired is not None
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 4


def test_a_load_that_comes_and_goes_does_not_split_the_medians() -> None:
    """Six of ten rounds are loaded for the slow candidate, five for the fast one, whose turn came just before."""
    top = [[20] * 9] * 4 + [[32] * 9] * 6
    bottom = [[10] * 9] * 5 + [[16] * 9] * 5
    paired, apart = paired_ratio(top, bottom), unpaired_ratio(top, bottom)
    assert paired is not None
    assert apart is not None
    assert paired.value == 2
    assert apart.value == pytest.approx(32 / 13)


def test_few_rounds_have_wider_tails_and_many_the_plain_ones() -> None:
    tails = [expanded_tail(0.95, blocks) for blocks in (5, 10, 30, 10_000)]
    assert tails == sorted(tails)
    assert tails[-1] == pytest.approx(0.025, rel=0.01)
    # Student's t for 9 degrees of freedom is 2.262; times sqrt(10/9) that is 2.385 normal deviations.
    assert tails[1] == pytest.approx(0.00855, rel=0.02)


@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (100_000, 1.960)],  # as tables have it
)
def test_students_quantiles_are_those_of_the_tables(freedom: float, t: float) -> None:
    assert student_quantile(0.95, freedom) == pytest.approx(t, rel=0.01)


def test_degrees_of_freedom_that_are_no_integer_are_on_the_safe_side() -> None:
    quantiles = [student_quantile(0.95, freedom / 10) for freedom in range(10, 60)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert student_quantile(0.95, 1.9) > 4.303


def test_two_rounds_that_differ_by_chance_decide_nothing() -> None:
    """They show 1.01 and 1.03: of two such figures the truth lies outside every other time."""
    found = paired_ratio([[101] * 9, [103] * 9], [[100] * 9, [100] * 9])
    assert found is not None
    assert found.low < 0.95
    assert found.high > 1.1
    assert found.value == pytest.approx(1.02)


def test_of_a_single_call_nothing_is_known() -> None:
    assert median_interval([[10]]) is None
    assert mean_interval([[10]]) is None
    assert paired_ratio([[10]], [[20]]) is None
    assert unpaired_ratio([[10]], [[20], [21]]) is None


def test_intervals_of_few_rounds_stay_finite() -> None:
    found = paired_ratio([[1], [10**9]], [[10**9], [1]])
    assert found is not None
    assert 0 < found.low < found.high < float("inf")


def test_rounds_that_only_one_has_are_no_pairs() -> None:
    found = paired_ratio([[20], [], [60], [80]], [[10], [7], [30], []])
    assert found is not None
    assert found.value == 2


def test_millions_of_samples_need_no_table_of_rounds_by_samples() -> None:
    rng = np.random.default_rng(0)
    blocks = [rng.integers(1000, 2000, 20_000) for _ in range(20)]
    picked = rng.multinomial(20, np.full(20, 0.05), size=10)
    tracemalloc.start()
    found = resampled_medians(blocks, picked)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(found, [
        np.median(np.concatenate([np.tile(block, times) for block, times in zip(blocks, row, strict=True)]))
        for row in picked
    ])  # fmt: skip
    assert peak < 4 * 8 * 20 * 20_000  # a few copies of the samples


def test_intervals_are_seeded() -> None:
    rng = np.random.default_rng(0)
    rounds = loaded_rounds(rng, 1e6, rng.normal(0, 0.2, 10), 20)
    assert median_interval(rounds) == median_interval(rounds)
    assert median_interval(rounds) != median_interval(rounds, seed=1)


def test_a_single_round_is_drawn_in_consecutive_blocks() -> None:
    """Its first half is slow: drawing single calls would give a median that is sure of itself."""
    found = median_interval([[200 + step % 7 for step in range(100)] + [100 + step % 7 for step in range(100)]])
    assert found is not None
    assert found.low == pytest.approx(103, abs=4)
    assert found.high == pytest.approx(203, abs=4)


@pytest.mark.parametrize("rounds", [[], [[]], [[], []]])
def test_no_samples_no_interval(rounds: Rounds) -> None:
    assert median_interval(rounds) is None
    assert mean_interval(rounds) is None
    assert unpaired_ratio(rounds, [[1]]) is None
    assert unpaired_ratio([[1]], rounds) is None


def test_no_ratio_without_a_time() -> None:
    assert paired_ratio([], []) is None
    assert paired_ratio([[1], [1]], [[0], [1]]) is None
    assert paired_ratio([[1]], [[0]]) is None
    assert unpaired_ratio([[1], [1]], [[0], [0]]) is None


def test_unfinished_runs_pair_the_rounds_that_both_have() -> None:
    found = paired_ratio([[20], [40], [60]], [[10], [20]])
    assert found is not None
    assert found.value == 2


def test_an_inverse_turns_the_ends_round() -> None:
    assert Ratio(2.0, 1.0, 4.0, 0.9).inverse() == Ratio(0.5, 0.25, 1.0, 0.9)


class TestSpikes:
    def test_they_are_far_above_their_round(self) -> None:
        rng = np.random.default_rng(0)
        calm = [[int(value) for value in rng.normal(1e6, 2e4, 200)] for _ in range(5)]
        assert find_spikes(calm) == ()
        calm[1][17], calm[4][0] = 3_000_000, 1_400_000
        assert find_spikes(calm) == ((1, 17), (4, 0))

    def test_a_slow_round_is_no_spike(self) -> None:
        assert find_spikes([[10] * 20, [30] * 20, [10] * 20]) == ()

    def test_a_wide_spread_is_no_row_of_spikes(self) -> None:
        rng = np.random.default_rng(0)
        assert find_spikes([[int(value) for value in rng.uniform(1e6, 3e6, 500)]]) == ()

    def test_steps_of_the_clock_are_no_spikes(self) -> None:
        assert find_spikes([[100] * 50 + [110] * 3]) == ()

    def test_fast_calls_are_no_spikes(self) -> None:
        assert find_spikes([[100] * 50 + [10]]) == ()

    def test_empty_rounds_have_none(self) -> None:
        assert find_spikes([[], [1, 1, 9]]) == ((1, 2),)


@pytest.mark.parametrize(
    ("values", "steady"),
    [
        ([1, 2, 3, 5], 1),
        ([5, 3, 2, 1], -1),
        ([1, 5, 2, 4, 1.5], 0.1),
        ([1, 2], 0),
        ([7, 7, 7, 7], 0),
        ([1, 1, 1, 1, 2], 0.7071),
        ([2, 1, 1, 1, 1], -0.7071),  # the same, seen from the other end
    ],
)
def test_trends(values: list[float], steady: float) -> None:
    assert rank_correlation(values) == pytest.approx(steady, abs=0.001)


def test_five_rounds_are_too_few_to_draw_from() -> None:
    """Their whole range holds a median in 1 - 2 / 2**5 = 93.75 % of cases: Student's interval stands in, symmetric."""
    five, six = median_interval([[100], [101], [102], [103], [120]]), median_interval([[100], [101]] * 2 + [[120]] * 2)
    assert five is not None
    assert six is not None
    assert five.low * five.high == pytest.approx(five.value**2)
    assert five.low < 100
    assert (six.low, six.high) == (100, 120), "of rounds that were drawn"
