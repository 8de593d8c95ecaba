"""The clock against work of known duration, on the real time of whatever machine this is.

A loaded machine makes calls longer, never shorter: so the shortest sample is compared with the nominal duration, and
every sample with what a reference clock in the same call saw.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from vexport.bench.clock import Clock, Samples

WITHIN = 0.02
DURATION_NS = 10_000_000


def reference_ns() -> int:
    """Another clock than perf_counter where there is one: Linux's, which no time server corrects."""
    raw = getattr(time, "CLOCK_MONOTONIC_RAW", None)
    return time.monotonic_ns() if raw is None else time.clock_gettime_ns(raw)


def busy_loop() -> None:
    end = time.perf_counter_ns() + DURATION_NS
    while time.perf_counter_ns() < end:
        pass


def sleep() -> None:
    time.sleep(DURATION_NS / 1e9)


def measure(work: Callable[[], None]) -> tuple[Samples, list[int]]:
    """Samples, and what the reference clock saw of the same calls."""
    seen: list[int] = []

    def call() -> None:
        before = reference_ns()
        work()
        seen.append(reference_ns() - before)

    clock = Clock(warmup_s=0, duration_s=0.4, least_count=40, rounds=4, settle_s=0)
    measured = clock.measure({"known": call})["known"]
    per_round, at, kept = [len(part) for part in measured.rounds_ns], 1, list[int]()
    for count in per_round:  # one call to warm up, and one to settle before each round
        kept += seen[at + 1 : at + 1 + count]
        at += 1 + count
    assert at == len(seen)
    return measured, kept


@pytest.mark.parametrize("work", [busy_loop, sleep], ids=["busy loop", "sleep"])
def test_known_durations_are_measured_within_two_per_cent(work: Callable[[], None]) -> None:
    measured, seen = measure(work)
    assert measured.count == len(seen) >= 40
    assert measured.ns.min() == pytest.approx(DURATION_NS, rel=WITHIN)
    assert (measured.ns >= DURATION_NS * (1 - WITHIN)).all()  # nothing ends early
    by_call = measured.ns / np.array(seen)
    assert np.median(by_call) == pytest.approx(1, abs=WITHIN)
    assert measured.median_ms * 1e6 == pytest.approx(float(np.median(seen)), rel=WITHIN)


def test_the_clock_costs_microseconds_at_most() -> None:
    inside_ns, whole_ns = Clock().overhead_ns
    assert 0 < inside_ns <= whole_ns < 100_000  # far above what any machine needs: a loop that does more would show
