"""Work in a process of its own: a crash in native code, or memory that is not given back, ends with that process.

What the work refuses arrives here as the same error. What it says besides is an error of its own: in a benchmark it
costs a cell, and the others go on.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from vexport.bench.clock import Clock, in_words
from vexport.bench.worker import Opened, Worker
from vexport.errors import VexportError

GRACE_S = 5.0  # after Ctrl-C, for the work to remove what it has half written
HINT = "measure it alone to see more, or leave it out"


@dataclass(frozen=True)
class _Guarded:
    """A callable whose refusals can travel: errors with keyword arguments cannot be pickled as they are."""

    work: Callable[[], Any]

    def __call__(self) -> tuple[str, Any]:
        signal.signal(signal.SIGTERM, _end)
        try:
            return "done", self.work()
        except VexportError as error:
            return "refused", (type(error).__name__, error.message, error.hint, error.details)


def _end(_number: int, _frame: object) -> None:
    """End by an exception, so that `finally` is heeded and nothing half-written stays."""
    sys.exit(1)


class Apart:
    """Does one thing after another in a process beside this one, or here.

    Args:
        name: Of the process, for reports.
        own_process: False does it here: a program whose main part is not guarded cannot start another one.
    """

    def __init__(self, name: str, *, own_process: bool = True) -> None:
        self.name, self.own_process = name, own_process
        self._worker: Worker | None = None

    def call(self, what: str, work: Callable[[], Any], timeout_s: float) -> Any:
        """What a callable gives.

        Args:
            what: For the message: "making vanillanet_9".
            work: Picklable, and so is what it gives.
            timeout_s: When it counts as hung; here there is none.

        Raises:
            VexportError: as the work raised it; or it failed otherwise, crashed or hung.
        """
        if not self.own_process:
            return _call_here(what, work)
        worker = self._worker = self._worker or Worker(self.name, _nothing, Clock())
        try:
            answer = worker.run(_Guarded(work), timeout_s)
        except KeyboardInterrupt:
            _end_gently(worker.pid)
            self.close()
            raise
        if answer is None:
            failure = worker.failure
            self.close()
            said, stderr = (failure.text, failure.stderr) if failure else ("it gave no answer", ())
            raise VexportError(f"{what}: {said}", details=stderr[-3:] if said.startswith("crashed") else (), hint=HINT)
        kind, value = answer
        if kind == "done":
            return value
        name, message, hint, details = value
        raise _kinds(VexportError).get(name, VexportError)(message, hint=hint, details=details)

    def close(self) -> None:
        """End the process; the next call starts another one."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _kinds(root: type[VexportError]) -> dict[str, type[VexportError]]:
    """The tree of errors from a root on, by name."""
    found = {root.__name__: root}
    for kind in root.__subclasses__():
        found |= _kinds(kind)
    return found


def _call_here(what: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except VexportError:
        raise
    except Exception as error:  # as in a process of its own: it costs this piece of work
        raise VexportError(f"{what}: {in_words(error)}", hint=HINT) from error


def _end_gently(pid: int | None) -> None:
    """Ask a process of ours to end, and wait a little."""
    for process in multiprocessing.active_children():
        if process.pid == pid:
            process.terminate()
            process.join(GRACE_S)


def _nothing() -> Opened:
    return Opened(lambda: None)
