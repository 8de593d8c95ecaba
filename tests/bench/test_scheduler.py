"""Turns: what one member leaves behind has gone before the next one is measured."""

from __future__ import annotations

from typing import Any

import pytest

from vexport.bench.clock import Clock, Samples
from vexport.bench.scheduler import REST_S, take_turns
from vexport.pipeline import bench_run


class Member:
    def __init__(self, name: str, log: list[str], error: str | None = None) -> None:
        self.name, self.error, self._log = name, error, log

    def warm_up(self) -> None:
        self._log.append(f"warm up {self.name}")

    def take_turn(self) -> None:
        self._log.append(self.name)

    def samples(self) -> Samples:
        return Samples(self.name, ())


def test_members_rest_before_each_turn() -> None:
    log: list[str] = []
    members = [Member("a", log), Member("b", log), Member("broken", log, "it failed")]
    take_turns(members, rounds=2, rest_s=0.05, sleep=lambda seconds: log.append(f"{seconds} s"))
    assert log[:2] == ["warm up a", "warm up b"]
    assert log[2::2] == ["0.05 s"] * 4
    assert sorted(log[3::2]) == ["a", "a", "b", "b"]


def test_a_member_alone_has_nobody_to_wait_for() -> None:
    log: list[str] = []
    take_turns([Member("a", log)], rounds=2, rest_s=0.05, sleep=lambda _: log.append("rest"))
    assert log == ["warm up a", "a", "a"]


@pytest.mark.parametrize("measure", [bench_run._in_workers, bench_run._in_this_process])
def test_groups_rest_longer_than_threads_spin(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def turns(members: Any, *, rest_s: float = 0.0, **more: Any) -> Any:
        asked.append(rest_s)
        return take_turns(members, **more)

    monkeypatch.setattr(bench_run, "take_turns", turns)
    measure([], Clock(), None, None, lambda *_: None)
    assert asked == [REST_S]
    assert REST_S >= 0.04
