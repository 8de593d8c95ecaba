"""A quick clock on a time source that only moves when somebody works."""

from __future__ import annotations

from vexport.bench.clock import Clock

from .fake import FakeTime


def clock(now_ns: FakeTime, **changes: object) -> Clock:
    """Two rounds of 50 ms after a warm-up of 10 ms, but for what is changed."""
    settings = {"warmup_s": 0.01, "duration_s": 0.1, "least_count": 4, "rounds": 2, "settle_s": 0, **changes}
    return Clock(**settings, now_ns=now_ns)  # type: ignore[arg-type]
