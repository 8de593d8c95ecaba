"""The clock, on a time source of its own: durations are what the callables say they are."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

import numpy as np
import pytest

from vexport.bench.clock import Clock, Samples, ratio
from vexport.errors import InputError

MS = 1_000_000


class FakeTime:
    """A time source that only moves when somebody works."""

    def __init__(self) -> None:
        self.now = 5_000

    def __call__(self) -> int:
        return self.now

    def work(self, *durations_ms: float, log: list[str] | None = None, name: str = "") -> Callable[[], None]:
        """A callable that takes these durations in turn."""
        calls = 0

        def call() -> None:
            nonlocal calls
            self.now += int(durations_ms[calls % len(durations_ms)] * MS)
            calls += 1
            if log is not None:
                log.append(name)

        return call


def clock(now_ns: FakeTime, **changes: float) -> Clock:
    settings = {"warmup_s": 0.01, "duration_s": 0.1, "least_count": 4, "rounds": 2, **changes}
    return Clock(**settings, now_ns=now_ns)  # type: ignore[arg-type]


def samples(*rounds_ms: list[float], name: str = "a", error: str | None = None) -> Samples:
    return Samples(name, tuple(tuple(int(ms * MS) for ms in part) for part in rounds_ms), error)


def test_known_durations_come_back() -> None:
    time = FakeTime()
    measured = clock(time).measure({"fast": time.work(2), "slow": time.work(10)})
    assert list(measured) == ["fast", "slow"]
    assert (measured["fast"].median_ms, measured["slow"].median_ms) == (2, 10)
    assert [len(part) for part in measured["fast"].rounds_ns] == [25, 25]
    assert [len(part) for part in measured["slow"].rounds_ns] == [5, 5]
    assert set(measured["slow"].ns) == {10 * MS}
    assert not measured["slow"].unstable


def test_the_least_count_holds_however_slow_the_candidate() -> None:
    time = FakeTime()
    measured = clock(time, least_count=7, rounds=3).measure({"slow": time.work(1000)})
    assert [len(part) for part in measured["slow"].rounds_ns] == [3, 3, 3]


def test_candidates_take_turns_after_the_warm_up() -> None:
    time, log = FakeTime(), list[str]()
    work = {name: time.work(20, log=log, name=name) for name in "abc"}
    clock(time, duration_s=0, least_count=2).measure(work)
    # One warm-up call of 20 ms each, then per turn one call that is not measured and one that is.
    assert "".join(log) == "abc" + "aabbcc" * 2


def test_the_warm_up_lasts_and_is_not_measured() -> None:
    time, log = FakeTime(), list[str]()
    slow_start = time.work(*[50] * 4, *[1] * 1000, log=log, name="a")
    measured = clock(time, warmup_s=0.2).measure({"a": slow_start})
    assert set(measured["a"].ns) == {MS}


def test_outliers_are_kept() -> None:
    time = FakeTime()
    measured = clock(time, rounds=1).measure({"a": time.work(*[1] * 20, 50)})
    assert max(measured["a"].ns) == 50 * MS
    assert measured["a"].unstable


def test_an_exception_is_that_candidates_result() -> None:
    time = FakeTime()
    calls = 0

    def breaks_later() -> None:
        nonlocal calls
        calls += 1
        time.now += MS
        if calls > 20:
            raise InputError("the images ran out", hint="bring more")

    def breaks() -> None:
        raise RuntimeError("out of memory\nand a long trace")

    measured = clock(time).measure({"breaks": breaks, "later": breaks_later, "works": time.work(10)})
    assert measured["breaks"].error == "RuntimeError: out of memory"
    assert measured["breaks"].count == 0
    assert math.isnan(measured["breaks"].median_ms)
    assert math.isnan(measured["breaks"].p99_ms)
    assert measured["breaks"].unstable
    assert measured["later"].error == "InputError: the images ran out"
    assert measured["later"].count == 9  # 20 good calls: 10 to warm up, one to settle
    assert measured["works"].error is None
    assert measured["works"].count == 10


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass_and_leave_the_garbage_collector_on(stop: type[BaseException]) -> None:
    time, calls = FakeTime(), 0

    def interrupted() -> None:
        nonlocal calls
        calls += 1
        time.now += 20 * MS
        if calls == 4:
            raise stop

    with pytest.raises(stop):
        clock(time).measure({"a": interrupted})
    assert gc.isenabled()


def test_no_garbage_is_collected_while_timing() -> None:
    time, seen = FakeTime(), list[bool]()

    def call() -> None:
        time.now += 20 * MS
        seen.append(gc.isenabled())

    clock(time, rounds=1, least_count=3, duration_s=0).measure({"a": call})
    assert seen == [True, True, False, False, False]  # warm-up, settling, three measured
    assert gc.isenabled()
    gc.disable()
    try:
        clock(time).measure({"a": call})
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_progress_counts_turns_to_the_end() -> None:
    time, told = FakeTime(), list[tuple[str, int, int]]()
    work = {"a": time.work(20), "b": time.work(20)}
    clock(time).measure(work, progress=lambda name, done, total: told.append((name, done, total)))
    assert told == [("a", 0, 6), ("b", 1, 6), ("a", 2, 6), ("b", 3, 6), ("a", 4, 6), ("b", 5, 6), ("b", 6, 6)]


def test_no_candidates_no_samples() -> None:
    assert Clock().measure({}, progress=lambda name, done, total: None) == {}


@pytest.mark.parametrize("wrong", [{"warmup_s": -1}, {"duration_s": float("nan")}, {"least_count": 0}, {"rounds": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="a clock cannot run"):
        Clock(**wrong)  # type: ignore[arg-type]


def test_settings_are_plain_values() -> None:
    assert Clock(1, 2, 3, 4).settings() == {"warmup_s": 1, "duration_s": 2, "least_count": 3, "rounds": 4}


def test_percentiles_are_numpys() -> None:
    values = list(np.random.default_rng(0).integers(1, 100, 501).astype(float))
    taken = samples(values)
    for percent, figure in ((50, taken.median_ms), (90, taken.p90_ms), (95, taken.p95_ms), (99, taken.p99_ms)):
        assert figure == pytest.approx(np.percentile(values, percent))
    assert taken.mean_ms == pytest.approx(np.mean(values))
    assert taken.cv == pytest.approx(np.std(values) / np.mean(values))


@pytest.mark.parametrize(
    ("taken", "unstable"),
    [
        (samples([10, 10, 10], [10.9, 10.9, 10.9]), False),
        (samples([10, 10, 10], [11.2, 11.2, 11.2]), True),  # drift
        (samples([10, 10, 10, 10, 10, 16]), True),  # spread
        (samples([10], error="RuntimeError"), True),
        (samples(), True),
        (samples([0, 0, 0]), True),  # too short for the clock
    ],
)
def test_unstable_runs_are_marked(taken: Samples, unstable: bool) -> None:
    assert taken.unstable is unstable


def test_the_ratio_of_constants_has_no_width() -> None:
    found = ratio(samples([3] * 5, [3] * 5), samples([2] * 5, [2] * 5))
    assert found is not None
    assert (found.value, found.low, found.high) == (1.5, 1.5, 1.5)
    assert found.inverse().value == pytest.approx(2 / 3)


def test_drift_that_both_share_does_not_widen_the_interval() -> None:
    """Rounds are drawn in pairs: a machine that slows down slows both."""
    speeds = [1.0, 1.2, 1.5, 2.0, 3.0]
    a, b = samples(*[[4 * s] * 9 for s in speeds]), samples(*[[2 * s] * 9 for s in speeds])
    shared = ratio(a, b)
    apart = ratio(a, samples(*[[2 * s] * 9 for s in reversed(speeds)]))
    assert shared is not None
    assert apart is not None
    assert (shared.low, shared.high) == (2, 2)
    assert apart.low < 1.5 < 2.5 < apart.high


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


def test_the_real_clock_runs() -> None:
    measured = Clock(warmup_s=0, duration_s=0, least_count=3, rounds=3).measure({"nothing": lambda: None})
    assert measured["nothing"].count == 3
    assert (measured["nothing"].ns >= 0).all()
