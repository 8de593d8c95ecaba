"""A time source that only moves when somebody works."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vexport.bench.clock import Samples

MS = 1_000_000


class FakeTime:
    """Nanoseconds; durations are what the callables say they are.

    Args:
        slowdown: Factor on all work that starts at this many milliseconds: the load that all candidates share.
    """

    def __init__(self, slowdown: Callable[[float], float] = lambda _now_ms: 1.0) -> None:
        self.now = 5_000
        self.slowdown = slowdown

    def __call__(self) -> int:
        return self.now

    def spend(self, ms: float) -> None:
        self.now += int(ms * MS * self.slowdown(self.now / MS))

    def work(self, *durations_ms: float, log: list[str] | None = None, name: str = "") -> Callable[[], None]:
        """A callable that takes these durations in turn."""
        calls = 0

        def call() -> None:
            nonlocal calls
            self.spend(durations_ms[calls % len(durations_ms)])
            calls += 1
            if log is not None:
                log.append(name)

        return call


def samples(*rounds_ms: Sequence[float], name: str = "a", error: str | None = None) -> Samples:
    """Rounds of calls of these durations."""
    return Samples(name, tuple(tuple(int(ms * MS) for ms in part) for part in rounds_ms), error)
