"""Turns for candidates that measure themselves, each in its own process or all in this one.

All warm up, then every round gives each a turn, in an order drawn anew. Whoever has no turn waits; so whatever slows
the machine for a while slows them all, even where no two share a process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vexport.bench.samples import Samples

# Threads of ONNX Runtime spin for about 40 ms after a call before they sleep, on cores that the next member needs.
REST_S = 0.05

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Run:
    """What all turns together brought.

    Args:
        samples: Name to samples, in the order given.
        order: Names in the order of the turns that they took, round by round.
        complete: Whether all rounds were taken.
    """

    samples: dict[str, Samples]
    order: tuple[tuple[str, ...], ...] = ()
    complete: bool = True


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; `run` holds the samples taken so far, those of the unfinished round too."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run


class Member(Protocol):
    """Whoever takes turns: a `Recorder`, or a `Worker`. A failure is kept in it; its turns are then empty."""

    @property
    def name(self) -> str: ...

    @property
    def error(self) -> str | None: ...

    def warm_up(self) -> None: ...

    def take_turn(self) -> None: ...

    def samples(self) -> Samples: ...


def take_turns(
    members: Sequence[Member],
    *,
    rounds: int,
    seed: int = 0,
    progress: Progress | None = None,
    rest_s: float = 0.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Run:
    """Warm up and take samples in turns.

    Args:
        members: Opened; their names differ.
        rounds: Turns of each.
        seed: Of the order within rounds.
        progress: Told the member, the turns done by all and the turns in all, before each turn and at the end.
        rest_s: Pause before each turn where there are several members: the threads of the one before come to rest.
        sleep: Makes the pause.

    Returns:
        Samples by name, the order of turns, and that all were taken.

    Raises:
        Interrupted: Ctrl-C, with the samples taken so far.
    """
    tell = progress or (lambda name, done, total: None)
    total = (rounds + 1) * len(members)
    order: list[list[str]] = []
    rng = np.random.default_rng(seed)

    def made(*, complete: bool) -> Run:
        samples = {one.name: one.samples() for one in members}
        return Run(samples, tuple(tuple(names) for names in order), complete)

    try:
        for done, member in enumerate(members):
            tell(member.name, done, total)
            if member.error is None:
                member.warm_up()
        for turn in range(1, rounds + 1):
            order.append([])
            for done, index in enumerate(rng.permutation(len(members)), start=turn * len(members)):
                member = members[index]
                tell(member.name, done, total)
                if member.error is None:
                    if rest_s and len(members) > 1:
                        sleep(rest_s)
                    order[-1].append(member.name)
                    member.take_turn()
        if members:
            tell(members[-1].name, total, total)
    except KeyboardInterrupt:
        raise Interrupted(made(complete=False)) from None
    return made(complete=True)
