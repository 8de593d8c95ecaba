"""The clock, on a time source of its own: durations are what the callables say they are."""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from collections.abc import Callable, Mapping

import pytest

from vexport.bench.clock import Clock, Recorder
from vexport.bench.watch import Reading
from vexport.errors import InputError

from .fake import MS, FakeTime
from .fake_clock import clock


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


def ticking(time: FakeTime) -> Callable[[], int]:
    """A time source of which each look takes 30 ns."""

    def look() -> int:
        time.now += 30
        return time.now

    return look


def test_settings_are_plain_values_with_the_cost_of_the_clock() -> None:
    said = Clock(1, 2, 3, 4, now_ns=ticking(FakeTime())).settings()
    assert (said["warmup_s"], said["duration_s"], said["least_count"], said["rounds"]) == (1, 2, 3, 4)
    assert said["overhead_ns"] == 30  # a sample spans one look
    assert said["overhead_per_call_ns"] == pytest.approx(60, rel=0.02)  # a call takes two


def test_calls_too_short_for_the_clock_are_marked() -> None:
    time = FakeTime()

    measured = Clock(warmup_s=0, duration_s=0.001, rounds=2, settle_s=0, now_ns=ticking(time))
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
