"""How far an ablation is, and how long it may still take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean

from vexport.pipeline.ablate_process import Running
from vexport.pipeline.ablate_run import Job


class Progress:
    """Tells the share that is done and the time that is left.

    A run's time is guessed from those of the same run with another seed, else of its row, else of all.

    Args:
        jobs: All that will be done.
        rows: Of each run, by its name.
        at_once: How many runs go on at once.
    """

    def __init__(self, jobs: Sequence[Job], rows: Mapping[str, str], at_once: int) -> None:
        self._rows, self._at_once, self.total = rows, at_once, len(jobs)
        self._left = {job.name: job for job in jobs}
        self._took: list[tuple[str, float]] = []

    @property
    def done(self) -> int:
        """Runs that have ended."""
        return self.total - len(self._left)

    def end(self, job: Job, seconds: float, *, failed: bool) -> None:
        """Note a run's end; of one that failed the time says nothing."""
        del self._left[job.name]
        if not failed:
            self._took.append((job.run, seconds))

    def share(self, running: Sequence[Running]) -> float:
        """Of all runs, counted by their epochs."""
        return (self.done + sum(one.share for one in running)) / max(1, self.total)

    def left_s(self, running: Sequence[Running]) -> float | None:
        """Seconds until all are done; None while nothing can be said."""
        spent = {one.job.name: time.monotonic() - one.began for one in running}
        known = list(self._took)
        known += [(one.job.run, spent[one.job.name] + one.eta_s) for one in running if one.eta_s is not None]
        if not known:
            return None
        going = 0.0
        for one in running:
            whole = self._guess(one.job.run, known) - spent[one.job.name]
            going += max(0.0, whole if one.eta_s is None else one.eta_s)
        waiting = sum(self._guess(job.run, known) for name, job in self._left.items() if name not in spent)
        return (going + waiting) / max(1, min(self._at_once, len(self._left)))

    def _guess(self, run: str, known: Sequence[tuple[str, float]]) -> float:
        same = [seconds for name, seconds in known if name == run]
        row = [seconds for name, seconds in known if self._rows[name] == self._rows[run]]
        return fmean(same or row or [seconds for _, seconds in known])
