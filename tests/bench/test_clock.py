"""The clock, on a time source of its own: durations are what the callables say they are."""

from __future__ import annotations

import gc
import itertools
import math
import signal
from collections import Counter
from collections.abc import Mapping

import pytest

from bench.fake import MS, FakeTime
from vexport.bench.clock import Clock, Interrupted, Recorder, ratio
from vexport.bench.watch import Reading
from vexport.errors import InputError


def clock(now_ns: FakeTime, **changes: object) -> Clock:
    settings = {"warmup_s": 0.01, "duration_s": 0.1, "least_count": 4, "rounds": 2, "settle_s": 0, **changes}
    return Clock(**settings, now_ns=now_ns)  # type: ignore[arg-type]


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
    run = clock(time, duration_s=0, least_count=4, warmup_s=0).run(work)
    # One warm-up call each, then per turn one call that is not measured and two that are.
    turns = "".join(3 * name for names in run.order for name in names)
    assert "".join(log) == "abc" + turns
    assert [sorted(names) for names in run.order] == [["a", "b", "c"]] * 2
    assert run.complete


def test_the_order_is_drawn_for_each_round_and_seeded() -> None:
    def order(seed: int) -> tuple[tuple[str, ...], ...]:
        time = FakeTime()
        work = {name: time.work(1) for name in "abc"}
        return clock(time, duration_s=0, least_count=1, rounds=200, warmup_s=0, seed=seed).run(work).order

    assert order(1) == order(1) != order(2)
    drawn = order(1)
    places = Counter((name, place) for names in drawn for place, name in enumerate(names))
    neighbours = Counter(pair for names in drawn for pair in itertools.pairwise(names))
    assert len(places) == 9
    assert min(places.values()) > 45  # a third of 200 is 67
    assert len(neighbours) == 6  # each has had each other before it
    assert min(neighbours.values()) > 45


def test_a_neighbour_that_spoils_the_next_turn_hits_all_alike() -> None:
    """`hot` leaves a machine on which whoever comes next takes twice as long. Alternating, that would be one of two."""
    time, last = FakeTime(), [""]

    def work(name: str) -> object:
        def call() -> None:
            time.spend(20 if state["before"] == "hot" and name != "hot" else 10)
            last[0] = name

        return call

    state = {"before": ""}

    def tell(name: str, done: int, total: int) -> None:
        state["before"] = last[0]

    names = ("hot", "a", "b")
    candidates = {name: work(name) for name in names}
    measured = clock(time, rounds=100, duration_s=0, least_count=100).measure(candidates, progress=tell)  # type: ignore[arg-type]
    means = [measured[name].mean_ms for name in ("a", "b")]
    assert means[0] == pytest.approx(means[1], rel=0.1)
    assert min(means) > 12  # both were hit


def test_settling_calls_are_not_measured() -> None:
    time, log = FakeTime(), list[str]()
    clock(time, settle_s=0.05, warmup_s=0, duration_s=0, least_count=2).measure({"a": time.work(20, log=log, name="a")})
    assert len(log) == 1 + 2 * (3 + 1)  # three calls last longer than the 50 ms to settle


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


class TestFaults:
    def test_injected_spikes_are_found_and_kept(self) -> None:
        time = FakeTime()
        durations = [10.0, 10.1, 9.9, 10.0, 10.2] * 40
        for place in (100, 133, 177):
            durations[place] = 60
        calm = clock(time, duration_s=1, rounds=5, warmup_s=0).measure({"a": time.work(10.0, 10.1, 9.9)})["a"]
        hit = clock(time, duration_s=1, rounds=5, warmup_s=0).measure({"a": time.work(*durations)})["a"]
        assert calm.spikes == ()
        assert not calm.unstable
        found = [hit.rounds_ns[index][call] for index, call in hit.spikes]
        assert found == [value for value in hit.ns if value == 60 * MS]
        assert len(found) > 0
        assert hit.unstable_because[0].startswith(f"spikes: {len(found)} of {hit.count} calls, up to 6.0 times")
        assert max(hit.ns) == 60 * MS  # not clipped
        assert hit.median_ms == pytest.approx(10, rel=0.01)

    def test_injected_drift_is_found(self) -> None:
        time = FakeTime(lambda now_ms: 1 + now_ms / 5000)  # twice as slow after five seconds
        measured = clock(time, duration_s=1, rounds=10).measure({"a": time.work(10)})["a"]
        (why,) = measured.unstable_because
        assert why.startswith("drift: the rounds' medians lie between 10")
        assert why.endswith("rising")
        assert measured.spikes == ()

    def test_load_that_all_share_changes_ratios_less_than_times(self) -> None:
        """Bursts of 350 ms every second, during which all work takes 1.7 times as long."""

        def burst(now_ms: float) -> float:
            return 1.7 if now_ms % 1000 < 350 else 1.0

        found = {}
        for name, time in (("quiet", FakeTime()), ("loaded", FakeTime(burst))):
            work = {"a": time.work(6.0, 6.2, 5.9), "b": time.work(3.0, 3.1, 2.9)}
            found[name] = clock(time, duration_s=3, rounds=12).measure(work)
        compared = {name: ratio(run["a"], run["b"]) for name, run in found.items()}
        assert compared["quiet"] is not None
        assert compared["loaded"] is not None
        by_time = [found["loaded"][name].mean_ms / found["quiet"][name].mean_ms - 1 for name in "ab"]
        by_ratio = abs(compared["loaded"].value / compared["quiet"].value - 1)
        assert min(by_time) > 0.1
        assert by_ratio < min(by_time) / 4
        assert compared["loaded"].low <= compared["quiet"].value <= compared["loaded"].high
        assert found["loaded"]["a"].unstable
        assert not found["quiet"]["a"].unstable

    def test_an_exception_is_that_candidates_result(self) -> None:
        time, calls = FakeTime(), 0

        def breaks_later() -> None:
            nonlocal calls
            calls += 1
            time.spend(10)
            if calls > 11:
                raise InputError("the images ran out", hint="bring more")

        def breaks() -> None:
            raise RuntimeError("out of memory\nand a long trace")

        work = {"breaks": breaks, "later": breaks_later, "works": time.work(10)}
        measured = clock(time, warmup_s=0).measure(work)
        assert measured["breaks"].error == "RuntimeError: out of memory"
        assert measured["breaks"].count == 0
        assert math.isnan(measured["breaks"].median_ms)
        assert math.isnan(measured["breaks"].p99_ms)
        assert measured["breaks"].unstable_because == ("error: RuntimeError: out of memory",)
        assert measured["later"].error == "InputError: the images ran out"
        # 11 good calls: one to warm up, one to settle, five measured; one to settle, three measured.
        assert [len(part) for part in measured["later"].rounds_ns] == [5, 3]
        assert measured["works"].error is None
        assert measured["works"].count == 10
        assert ratio(measured["later"], measured["works"]) is None

    def test_an_interrupt_keeps_what_was_taken(self) -> None:
        """A real Ctrl-C, in the middle of a turn of the second of two rounds."""
        time, calls = FakeTime(), 0

        def interrupted() -> None:
            nonlocal calls
            calls += 1
            time.spend(10)
            if calls == 10:
                signal.raise_signal(signal.SIGINT)

        work = {"a": interrupted, "b": time.work(10)}
        with pytest.raises(KeyboardInterrupt) as caught:
            clock(time, warmup_s=0).measure(work)
        assert isinstance(caught.value, Interrupted)
        run = caught.value.run
        assert not run.complete
        assert [len(part) for part in run.samples["a"].rounds_ns] == [5, 1]
        assert run.samples["a"].error is None
        assert len(run.samples["b"].rounds_ns) in (1, 2)
        found = ratio(run.samples["a"], run.samples["b"])
        assert found is not None
        assert found.value == 1
        assert gc.isenabled()

    def test_an_interrupt_during_the_warm_up_has_no_samples_yet(self) -> None:
        def interrupted() -> None:
            raise KeyboardInterrupt

        with pytest.raises(Interrupted) as caught:
            clock(FakeTime()).measure({"a": interrupted})
        assert caught.value.run.samples["a"].count == 0

    def test_an_exit_passes_and_leaves_the_garbage_collector_on(self) -> None:
        time, calls = FakeTime(), 0

        def leaves() -> None:
            nonlocal calls
            calls += 1
            time.spend(20)
            if calls == 4:
                raise SystemExit

        with pytest.raises(SystemExit):
            clock(time, warmup_s=0).measure({"a": leaves})
        assert gc.isenabled()


def test_no_garbage_is_collected_while_timing() -> None:
    time, seen = FakeTime(), list[bool]()

    def call() -> None:
        time.spend(20)
        seen.append(gc.isenabled())

    clock(time, rounds=1, least_count=3, duration_s=0, warmup_s=0).measure({"a": call})
    assert seen == [True, False, False, False, False]  # warm-up, settling, three measured
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
    run = clock(time).run(work, progress=lambda name, done, total: told.append((name, done, total)))
    names = ["a", "b", *run.order[0], *run.order[1], "b"]
    assert told == [(name, done, 6) for done, name in enumerate(names)]


def test_no_candidates_no_samples() -> None:
    assert Clock().measure({}, progress=lambda name, done, total: None) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"warmup_s": -1},
        {"duration_s": float("nan")},
        {"least_count": 0},
        {"rounds": 0},
        {"warmup_most_s": -1},
        {"warmup_bound": float("nan")},
        {"settle_s": -0.1},
        {"duration_s": float("inf")},
        {"warmup_most_s": float("inf")},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="a clock cannot run"):
        Clock(**wrong)  # type: ignore[arg-type]


def test_settings_are_plain_values_with_the_cost_of_the_clock() -> None:
    time = FakeTime()

    def ticking() -> int:
        time.now += 30  # each look at the clock takes 30 ns
        return time.now

    said = Clock(1, 2, 3, 4, now_ns=ticking).settings()
    assert (said["warmup_s"], said["duration_s"], said["least_count"], said["rounds"]) == (1, 2, 3, 4)
    assert said["overhead_ns"] == 30  # a sample spans one look
    assert said["overhead_per_call_ns"] == pytest.approx(60, rel=0.02)  # a call takes two


def test_calls_too_short_for_the_clock_are_marked() -> None:
    time = FakeTime()

    def ticking() -> int:
        time.now += 30
        return time.now

    measured = clock(time, warmup_s=0, duration_s=0.001)
    measured = Clock(warmup_s=0, duration_s=0.001, rounds=2, settle_s=0, now_ns=ticking)
    short, long = measured.measure({"short": time.work(0.001), "long": time.work(0.01)}).values()
    assert any(
        why.startswith("too short: the clock's own 30 ns are 2.9% of the median") for why in short.unstable_because
    )
    assert not long.unstable


class TestParts:
    class Gpu:
        """A candidate whose device takes 3 ms of the call's 5, and whose launches take one."""

        def __init__(self, time: FakeTime, fail_after: int | None = None) -> None:
            self.time, self.left = time, fail_after

        def call(self) -> None:
            self.time.spend(5)

        def parts(self) -> Mapping[str, int]:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise RuntimeError("the device is gone")
            self.time.spend(4)
            return {"device": 3 * MS, "enqueue": MS}

    def test_they_are_kept_apart_round_by_round(self) -> None:
        time = FakeTime()
        measured = clock(time).measure({"gpu": self.Gpu(time), "cpu": time.work(5)})
        gpu = measured["gpu"]
        assert gpu.median_ms == 5
        assert set(gpu.parts_ns) == {"device", "enqueue"}
        device = gpu.part("device")
        assert device is not None
        assert (device.median_ms, len(device.rounds_ns)) == (3, 2)
        # Half a turn's 50 ms again, at 4 ms each.
        assert [len(part) for part in device.rounds_ns] == [7, 7]
        assert gpu.part("copies") is None
        assert measured["cpu"].parts_ns == {}

    def test_an_error_keeps_those_before(self) -> None:
        time = FakeTime()
        gpu = clock(time).measure({"gpu": self.Gpu(time, fail_after=9)})["gpu"]
        assert gpu.error == "RuntimeError: the device is gone"
        assert [len(part) for part in gpu.parts_ns["device"]] == [7, 2]
        assert [len(part) for part in gpu.rounds_ns] == [10, 10]


class TestWatched:
    def test_each_turn_has_its_conditions(self) -> None:
        time = FakeTime()

        class Fake:
            def read(self) -> Reading:
                seconds = time.now / 1e9
                return Reading(wall_s=seconds, own_s=seconds, cores=2, busy_s=1.5 * seconds, steal_s=0.0)

        measured = clock(time, watch=Fake()).measure({"a": time.work(10), "b": time.work(10)})
        for one in measured.values():
            assert len(one.conditions) == 2
            assert one.conditions[0].wall_s == pytest.approx(0.06)  # settling and five calls
            assert one.conditions[0].others_s == pytest.approx(0.03)
            assert one.unstable_because == ("load: other processes kept 0.5 of 2 cores busy",)


def test_a_recorder_is_driven_from_outside() -> None:
    time = FakeTime()
    recorder = Recorder(clock(time, warmup_s=0), "a", time.work(10))
    recorder.warm_up()
    assert recorder.samples().count == 0
    recorder.take_turn()
    assert [len(part) for part in recorder.samples().rounds_ns] == [5]


def test_the_real_clock_runs() -> None:
    measured = Clock(warmup_s=0, duration_s=0, least_count=3, rounds=3).measure({"nothing": lambda: None})
    assert measured["nothing"].count == 3
    assert (measured["nothing"].ns >= 0).all()
