"""The clock under spikes, drift, load, exceptions and interrupts: each is told, and nothing measured is lost."""

from __future__ import annotations

import gc
import itertools
import math
import signal
import sys
from collections.abc import Callable

import pytest

from vexport.bench.clock import Interrupted, ratio
from vexport.errors import InputError

from .fake import MS, FakeTime
from .fake_clock import clock


def work_until(time: FakeTime, number: int, ending: Callable[[], object], *, ms: float = 10) -> Callable[[], None]:
    """A callable of one duration that ends in its own way from the call of this number on, the first being 1."""
    calls = itertools.count(1)

    def call() -> None:
        time.spend(ms)
        if next(calls) >= number:
            ending()

    return call


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
        time = FakeTime()

        def runs_out() -> None:
            raise InputError("the images ran out", hint="bring more")

        def breaks() -> None:
            raise RuntimeError("out of memory\nand a long trace")

        work = {"breaks": breaks, "later": work_until(time, 12, runs_out), "works": time.work(10)}
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
        time = FakeTime()
        interrupted = work_until(time, 10, lambda: signal.raise_signal(signal.SIGINT))
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
        time = FakeTime()
        with pytest.raises(SystemExit):
            clock(time, warmup_s=0).measure({"a": work_until(time, 4, sys.exit, ms=20)})
        assert gc.isenabled()
