"""Runs in processes of their own, some at once: a crash, a hang or a lack of memory costs one run and no other.

The parent reads a pipe per run, by which the run tells how far it is, and that it computes; one that does neither for
too long is hung. Within an epoch telling alone counts, since what hangs on a GPU spins: training tells each batch, and
so does validation, so a batch that takes too long, as the first one of a compiled network may, looks like a hang.
Ctrl-C reaches the parent alone: it asks the runs to stop, and ends those that do not. A run whose parent is gone ends
with it, or where the system cannot do that, when it next tells something.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vexport.errors import EXIT_INTERRUPTED, TrainingError, VexportError, WorkspaceError
from vexport.pipeline.ablate_ends import ALIVE, Line, end_with_parent, signs_of_life
from vexport.pipeline.ablate_run import Job, Tell
from vexport.pipeline.epochs import epoch_share
from vexport.workspace import mapped_os_errors

Work = Callable[[Job, Tell], dict[str, Any]]
OUTPUT = "output.txt"  # of a run, in its folder: what all its tries said, each under a line that begins so
HEADER = "=== vexport ablate: "
TICK_S = 0.5
STOP_S = 10.0  # until a run that was asked to stop is killed
_NO_MEMORY = ("out of memory", "bad_alloc", "can't allocate memory", "cannot allocate memory", "not enough memory")


@dataclass(frozen=True)
class Failure:
    """Why a run brought no figures.

    Args:
        kind: `failed`, `diverged`, `crashed`, `hung`, `stopped` or `out of memory`.
        text: In a line.
        details: Further lines.
        hint: What to do about it, where that is known.
    """

    kind: str
    text: str
    details: tuple[str, ...] = ()
    hint: str = ""

    @property
    def lines(self) -> tuple[str, ...]:
        """All but the text."""
        return (*self.details, f"hint: {self.hint}") if self.hint else self.details

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "text": self.text, "details": list(self.lines)}


@dataclass
class Running:
    """A run that goes on.

    Args:
        job: Which.
        began: When, in seconds of the monotonic clock.
        heard: When it last told something; where it is in no epoch, if only that it computes.
        epochs: Done, and in all; 0 of 0 until it says.
        share: Of its epochs that is done.
        step: What it does besides training.
        eta_s: What it thinks it has left to train.
        ended: Epochs that ended and that nobody was told of yet: number, in all, and top-1 in per cent.
    """

    job: Job
    process: Any = field(repr=False)
    pipe: Connection = field(repr=False)
    began: float
    heard: float
    epochs: tuple[int, int] = (0, 0)
    share: float = 0.0
    step: str = "starting"
    eta_s: float | None = None
    ended: list[tuple[int, int, float]] = field(default_factory=list)
    answer: dict[str, Any] | Failure | None = field(default=None, repr=False)

    @property
    def in_epoch(self) -> bool:
        """Whether it trains or validates, and so tells by itself how far it is."""
        done, epochs = self.epochs
        return not self.step and done < epochs


def do_runs(
    jobs: Sequence[Job],
    work: Work,
    *,
    at_once: int,
    patience_s: float,
    on_end: Callable[[Job, dict[str, Any] | Failure, float], None],
    on_tick: Callable[[Sequence[Running], int], None] = lambda _running, _waiting: None,
) -> None:
    """Do runs, each in its own process.

    Args:
        jobs: In the order in which they begin.
        work: What a process does; importable by name.
        at_once: How many at the most.
        patience_s: A run that tells nothing for so long is hung; where it is in no epoch, if it computes nothing too.
        on_end: Told each run that ended, its figures or failure, and the seconds that it took.
        on_tick: Told now and then which runs go on, and how many wait.

    Raises:
        KeyboardInterrupt: Ctrl-C; the runs that were going on have been stopped.
    """
    waiting, running = deque(jobs), list[Running]()  # a run stands in the latter before its process starts
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.popleft()
                failure = _start(job, work, running)
                if failure is not None:  # this run's: the others go on
                    on_end(job, failure, 0.0)
            wait([one.pipe for one in running], TICK_S)
            for one in list(running):
                answer = _look(one, patience_s)
                if answer is not None:
                    running.remove(one)
                    _end(one, 0.0 if one.answer is None else STOP_S)
                    on_end(one.job, answer, time.monotonic() - one.began)
            on_tick(running, len(waiting))
    finally:
        _stop(running)


def _start(job: Job, work: Work, running: list[Running]) -> Failure | None:
    """Start a run, which is then among those that go on; or say why it cannot be started."""
    path = job.folder / OUTPUT
    try:
        with mapped_os_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(f"{HEADER}{job.name}, {datetime.now(timezone.utc).isoformat(timespec='seconds')} ===\n")
    except WorkspaceError as error:
        return Failure("failed", error.message, error.details, error.hint)
    context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks, and CUDA refuses it
    pipe, theirs = context.Pipe()
    # No daemon: those may have no processes of their own, and reading images takes some.
    process = context.Process(target=serve, args=(work, job, theirs), name=f"vexport ablate {job.name}")
    now = time.monotonic()
    one = Running(job, process, pipe, now, now)
    running.append(one)  # before it starts: a signal that comes meanwhile, even on the block's last line, stops it too
    try:
        with _no_interrupt():
            process.start()
    except OSError as error:
        running.remove(one)
        _end(one, 0.0)
        return Failure(*_classify("failed", f"its process cannot be started: {error}"))
    finally:
        theirs.close()
    one.began = one.heard = time.monotonic()
    return None


def _look(one: Running, patience_s: float) -> dict[str, Any] | Failure | None:
    """What a run has told since; its answer, once it has one."""
    ended = not one.process.is_alive()  # asked first: what it told before is in the pipe
    with contextlib.suppress(EOFError, OSError):
        while one.answer is None and one.pipe.poll():
            _hear(one, one.pipe.recv())
    if one.answer is not None:
        return one.answer
    if ended:
        return _how_it_ended(one)
    silent = time.monotonic() - one.heard
    if silent > patience_s:
        return Failure("hung", f"hung: it told nothing for {silent:.0f} s", _tail(one.job))
    return None


def _hear(one: Running, told: tuple[Any, ...]) -> None:
    now = time.monotonic()
    if told == ALIVE:
        if not one.in_epoch:
            one.heard = now
        return
    one.heard = now
    kind, *rest = told
    if kind == "epoch":
        epoch, epochs, figures = rest
        one.epochs, one.share = (epoch, epochs), epoch_share(epoch, epochs, figures)
        one.step, one.eta_s = "", figures.get("eta_s")
        if "top1" in figures:
            one.ended.append((epoch, epochs, figures["top1"]))
    elif kind == "step":
        one.step, one.eta_s, one.share = rest[0], 0.0, 1.0
    elif kind == "done":
        one.answer = rest[0]
    else:
        one.answer = Failure(*rest)


def _how_it_ended(one: Running) -> Failure:
    code = one.process.exitcode
    if code == EXIT_INTERRUPTED:
        again = "the same command without --force" if one.job.anew else "the same command"
        return Failure("stopped", f"stopped from outside; {again} goes on with it")
    if code >= 0:
        return Failure("crashed", f"crashed: it ended with exit code {code}", _tail(one.job))
    named = {int(known): known.name for known in signal.Signals}.get(-code, "")
    if -code == signal.SIGKILL:  # what Linux sends where memory runs out
        return Failure("out of memory", f"killed by signal {-code} (out of memory?)", _tail(one.job))
    return Failure("crashed", f"crashed: signal {-code} ({named})", _tail(one.job))


def _tail(job: Job, lines: int = 12) -> tuple[str, ...]:
    try:
        text = (job.folder / OUTPUT).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    said = text.rpartition(HEADER)[2].splitlines()[1:]  # in this try
    return tuple(line[:300] for line in said if line.strip())[-lines:]


def _stop(running: Sequence[Running]) -> None:
    """Ask runs to stop, and end by force those that do not; at once on a second Ctrl-C."""
    try:
        for one in running:
            if one.process.pid is not None and one.process.is_alive():
                one.process.terminate()
        deadline = time.monotonic() + STOP_S
        for one in running:
            if one.process.pid is not None:
                one.process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for one in running:
            _end(one, 0.0)


def _end(one: Running, patience_s: float) -> None:
    """Let go of a process, if it was started at all: it ends by itself within that time, or is killed."""
    if one.process.pid is not None:
        one.process.join(patience_s)
        if one.process.is_alive():
            one.process.kill()
            one.process.join()
    one.pipe.close()
    one.process.close()


def serve(work: Work, job: Job, pipe: Connection) -> None:
    """Do a run in this process and tell the parent."""
    end_with_parent()
    signal.signal(signal.SIGTERM, _stop_here)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent hears it too, and asks this process to stop
    # Before numpy and torch are imported, which read them once.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(job.threads)
    faulthandler.enable()  # a crash in native code says where
    _redirect(job.folder / OUTPUT)
    line = Line(pipe)
    try:
        with signs_of_life(line.tell):
            answer: tuple[Any, ...] = ("done", work(job, line.tell))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except VexportError as error:
        kind = "diverged" if is_divergence(error) else "failed"
        answer = ("failed", *_classify(kind, error.message), error.details, error.hint)
    except BaseException as error:
        traceback.print_exc()
        said = "".join(traceback.format_exception_only(error)).strip()
        answer = ("failed", *_classify("failed", said), _tail(job))
    with contextlib.suppress(KeyboardInterrupt):  # the parent is gone
        line.tell(answer)


def is_divergence(error: VexportError) -> bool:
    """Whether training stopped because figures are no longer finite."""
    return isinstance(error, TrainingError) and re.search(r"\b(nan|inf|finite)\b", error.message) is not None


def _classify(kind: str, text: str) -> tuple[str, str]:
    if text.startswith("MemoryError") or any(sign in text.lower() for sign in (*_NO_MEMORY, "memory is too small")):
        return "out of memory", f"out of memory: {text}"
    return kind, text


def _stop_here(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise KeyboardInterrupt


def _redirect(path: Path) -> None:
    """Standard output and error, of native libraries too, into a file: the parent's are not theirs."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        if stream is not None:
            stream.flush()
        os.dup2(target, descriptor)
    os.close(target)


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Processes that start in this block never see the SIGINT that a terminal sends to all."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it would let the signal through again when it is first needed
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
