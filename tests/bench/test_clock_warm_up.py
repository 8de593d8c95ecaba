"""The clock's warm-up: how long it lasts, when it is stable, and what is told where it is not."""

from __future__ import annotations

import pytest

from .fake import MS, FakeTime
from .fake_clock import clock


class TestWarmUp:
    def test_it_goes_on_until_the_windows_agree(self) -> None:
        time = FakeTime()
        slow_start = time.work(*[5 - 0.1 * step for step in range(40)], *[1] * 10_000)
        measured = clock(time, warmup_s=0.03).measure({"a": slow_start})["a"]
        assert set(measured.ns) == {MS}
        assert measured.warm_up is not None
        assert measured.warm_up.stable
        assert 0.12 < measured.warm_up.duration_s < 0.2  # the slow start takes 122 ms
        last = measured.warm_up.windows_ns[-3:]
        assert max(last) <= 1.05 * min(last)
        assert not measured.unstable

    def test_it_lasts_the_least_time_even_where_all_is_stable(self) -> None:
        time = FakeTime()
        found = clock(time, warmup_s=3).measure({"a": time.work(1)})["a"].warm_up
        assert found is not None
        assert found.stable
        assert found.duration_s == pytest.approx(3)
        assert found.calls == 3000

    def test_it_ends_some_day_and_says_so(self) -> None:
        time = FakeTime()
        never = time.work(*[1] * 10, *[3] * 10)
        found = clock(time, warmup_s=0.03, warmup_most_s=0.5).measure({"a": never})["a"].warm_up
        assert found is not None
        assert found.stable is False
        assert 0.5 <= found.duration_s < 0.55

    def test_a_start_that_outlasts_it_is_told(self) -> None:
        """Calls get faster for 1.5 s; the warm-up ends after 0.5 s, and the first of five rounds has the rest."""
        time = FakeTime(lambda now_ms: max(1.0, 2 - now_ms / 1500))
        measured = clock(time, warmup_s=0.3, warmup_most_s=0.5, duration_s=5, rounds=5).measure({"a": time.work(10)})
        (why,) = [why for why in measured["a"].unstable_because if why.startswith("warm-up")]
        assert why.startswith("warm-up: still changing after 0.5 s, and the first round took 1.")

    def test_windows_that_differ_by_chance_are_no_doubt(self) -> None:
        """Slow calls of three to a window: 100, 104 and 108 ms in turns, in rounds that are all alike."""
        time = FakeTime()
        work = time.work(*[100] * 3, *[108] * 3)
        measured = clock(time, warmup_s=0.5, warmup_most_s=2, rounds=4, duration_s=0, least_count=20)
        found = measured.measure({"a": work})["a"]
        assert found.warm_up is not None
        assert found.warm_up.stable is False
        assert found.unstable_because == ()

    def test_nobody_waits_for_windows_of_a_very_slow_candidate(self) -> None:
        time, log = FakeTime(), list[str]()
        measured = clock(time, warmup_s=1).measure({"a": time.work(60_000, log=log, name="a")})["a"]
        assert measured.warm_up is not None
        assert (measured.warm_up.calls, measured.warm_up.stable) == (1, None)
        assert not measured.unstable

    def test_a_window_that_time_cuts_short_is_not_judged(self) -> None:
        """Windows of three calls of 50 ms; the tenth call, alone in the fourth window, is slow."""
        time = FakeTime()
        work = time.work(*[50] * 3, *[60] * 3, *[50] * 3, 300)
        found = clock(time, warmup_s=0.1, warmup_most_s=0.5, warmup_bound=0.1).measure({"a": work})["a"].warm_up
        assert found is not None
        assert [ns / MS for ns in found.windows_ns] == [50, 60, 50]
        assert (found.calls, found.stable) == (10, False)
        time = FakeTime()
        work = time.work(*[50] * 6, 50, 300, 300)
        found = clock(time, warmup_s=0.1, warmup_most_s=0.6).measure({"a": work})["a"].warm_up
        assert found is not None
        assert [ns / MS for ns in found.windows_ns] == [50, 50]
        assert found.stable

    def test_none_is_one_call(self) -> None:
        time = FakeTime()
        found = clock(time, warmup_s=0).measure({"a": time.work(2)})["a"].warm_up
        assert found is not None
        assert (found.calls, found.stable, found.windows_ns) == (1, None, ())
