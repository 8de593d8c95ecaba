"""Turns for candidates that measure themselves, each in its own process or all in this one.

As in `Clock.run`: all warm up, then every round gives each a turn, in an order drawn anew. Whoever has no turn waits;
so whatever slows the machine for a while slows them all, although no two share a process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from vexport.bench.clock import Interrupted, Run, Samples

Progress = Callable[[str, int, int], None]


class Member(Protocol):
    """Whoever takes turns: a `Recorder`, or a `Worker`. A failure is kept in it; its turns are then empty."""

    @property
    def name(self) -> str: ...

    @property
    def error(self) -> str | None: ...

    def warm_up(self) -> None: ...

    def take_turn(self) -> None: ...

    def samples(self) -> Samples: ...


def take_turns(members: Sequence[Member], *, rounds: int, seed: int = 0, progress: Progress | None = None) -> Run:
    """Warm up and take samples in turns.

    Args:
        members: Opened; their names differ.
        rounds: Turns of each.
        seed: Of the order within rounds.
        progress: Told the member, the turns done by all and the turns in all, before each turn and at the end.

    Returns:
        Samples by name, the order of turns, and that all were taken.

    Raises:
        Interrupted: Ctrl-C, with the samples taken so far.
    """
    tell = progress or (lambda name, done, total: None)
    total = (rounds + 1) * len(members)
    order: list[tuple[str, ...]] = []
    rng = np.random.default_rng(seed)

    def made(*, complete: bool) -> Run:
        return Run({one.name: one.samples() for one in members}, tuple(order), complete)

    try:
        for done, member in enumerate(members):
            tell(member.name, done, total)
            if member.error is None:
                member.warm_up()
        for turn in range(1, rounds + 1):
            drawn = [members[index] for index in rng.permutation(len(members))]
            order.append(tuple(member.name for member in drawn if member.error is None))
            for done, member in enumerate(drawn, start=turn * len(members)):
                tell(member.name, done, total)
                if member.error is None:
                    member.take_turn()
        if members:
            tell(members[-1].name, total, total)
    except KeyboardInterrupt:
        raise Interrupted(made(complete=False)) from None
    return made(complete=True)
