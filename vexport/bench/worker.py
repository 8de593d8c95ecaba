"""A candidate in a process of its own: a crash, a hang or a lack of memory takes that process and nothing else.

The parent asks one question at a time over a pipe, and the worker answers: open, warm up, take a turn, close. Samples
come back after every turn, so that what was measured before a crash is kept. Between two questions the worker waits in
a read of the pipe: it holds memory, but no core; what processor time it takes meanwhile is measured (`Waiting`).
"""

from __future__ import annotations

import contextlib
import io
import math
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from vexport.bench.clock import PARTS_SHARE, Clock, Samples, in_words
from vexport.bench.worker_process import Opened, Opener, Waiting, serve

__all__ = ["Failure", "Opened", "Opener", "Timeouts", "Waiting", "Worker", "run_alone"]

TAIL_LINES, TAIL_WIDTH, FRAMES = 12, 300, 3  # of what a worker wrote to standard error
CLOSE_S = 10.0  # until a worker that does not end by itself is killed
LOOK_S = 1.0  # how often to look whether a worker is still there
TRACE_S = 3.0  # for one that hangs, to say where
SLOWER = 4.0  # a call may be that many times as slow as in the warm-up before it counts as hung
# How libraries say that memory ran out; PyTorch, CUDA, ONNX Runtime, oneDNN, TensorRT.
_NO_MEMORY = ("out of memory", "outofmemory", "bad_alloc", "bad allocation", "failed to allocate", "alloc_failed",
              "cannot allocate memory", "could not allocate", "no memory left")  # fmt: skip

Kind = Literal["crashed", "hung", "out of memory", "failed"]


@dataclass(frozen=True)
class Timeouts:
    """How long to wait before a worker counts as hung.

    Args:
        open_s: For opening: kernels may be compiled then.
        answer_s: For any other answer, beyond the time that the clock measures for: its duration, or that of the least
            count of calls, by what one took in the warm-up.
    """

    open_s: float = 600.0
    answer_s: float = 120.0


@dataclass(frozen=True)
class Failure:
    """Why a worker brings nothing more.

    Args:
        kind: In a word.
        text: In a line.
        stderr: The last lines that it wrote to standard error or output.
    """

    kind: Kind
    text: str
    stderr: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "text": self.text, "stderr": list(self.stderr)}


class Worker:
    """One candidate's process, seen from the parent.

    A failure of any kind is kept in `failure`, and ends the process: it must not hold memory that the others need.
    Whatever is asked after it does nothing. What was taken before it stays.

    Args:
        name: For reports.
        opener: Makes the candidate, in the worker. It is pickled: a function or an object of an importable module.
        clock: How to measure; the worker has a time source and a watch of its own.
        timeouts: When it counts as hung.
        gpu: Whether to watch the GPU.
    """

    def __init__(
        self, name: str, opener: Opener, clock: Clock, *, timeouts: Timeouts | None = None, gpu: bool = False
    ) -> None:
        self.name, self.clock, self.timeouts, self.gpu = name, clock, timeouts or Timeouts(), gpu
        self.failure: Failure | None = None
        self.facts: dict[str, Any] = {}
        self.waiting = Waiting()
        self.beside = 0  # processes of ours that use the same GPU, this worker left out
        self._opener = opener
        self._samples: Samples | None = None
        self._pipe: Connection | None = None
        self._process: Any = None
        self._asked = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def error(self) -> str | None:
        """What it failed with, in words."""
        return self.failure.text if self.failure else None

    @property
    def pid(self) -> int | None:
        """Of its process, while there is one."""
        return self._process.pid if self._process else None

    def open(self) -> None:
        """Start the process and open the candidate there."""
        # The worker has its own time source and its own watch.
        left_out = ("now_ns", "watch")
        how = {one.name: getattr(self.clock, one.name) for one in fields(self.clock) if one.name not in left_out}
        opener = self._pickled(self._opener)
        self.facts = self._ask("open", (opener, how, self.name, self.gpu), self.timeouts.open_s) or {}

    def warm_up(self) -> None:
        """Call it until it is stable."""
        clock = self.clock
        self._take(self._ask("warm up", None, max(clock.warmup_s, clock.warmup_most_s) + self.timeouts.answer_s))

    def take_turn(self) -> None:
        """Take one round of samples."""
        clock = self.clock
        turn_s = clock.duration_s / clock.rounds * (1 + PARTS_SHARE) + clock.settle_s
        self._take(self._ask("turn", self.beside, max(turn_s, self._least_s()) + self.timeouts.answer_s))

    def _least_s(self) -> float:
        """What the least count of calls may take in a turn, with one to settle and those for the parts."""
        warm_up = self._samples.warm_up if self._samples else None
        if warm_up is None:
            return 0.0
        calls = 1 + 2 * math.ceil(self.clock.least_count / self.clock.rounds)
        return SLOWER * calls * warm_up.duration_s / warm_up.calls

    def run(self, work: Callable[[], Any], timeout_s: float) -> Any:
        """What a picklable callable gives, called in the worker; None where that fails."""
        answer = self._ask("run", self._pickled(work), timeout_s)
        try:
            return None if answer is None else pickle.loads(answer)
        except Exception as error:
            self._fail("failed", f"its answer cannot be read: {in_words(error)}")
            return None

    def samples(self) -> Samples:
        """What was taken so far, with what it failed with."""
        found = self._samples or Samples(self.name, ())
        return replace(found, error=self.error) if self.failure else found

    def close(self) -> None:
        """End the process, by force where it does not answer. What was taken stays."""
        if self._process is not None and self._pipe is not None and not self._asked:
            with contextlib.suppress(OSError, ValueError):
                self._pipe.send(("close", None, CLOSE_S))
                _join(self._process, CLOSE_S)
        self._end()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _end(self) -> None:
        """Kill what still runs."""
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        if pipe is not None:
            pipe.close()
        if process is None:
            return
        if process.is_alive():
            process.kill()
            _join(process, CLOSE_S)
        if process.exitcode is not None:  # else a driver holds it in the kernel, where no signal reaches it
            process.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks, and CUDA refuses it
        self._folder = tempfile.TemporaryDirectory(prefix="vexport-bench-", ignore_cleanup_errors=True)
        self._pipe, theirs = context.Pipe()
        process = context.Process(
            target=serve, args=(theirs, str(self._said_in)), name=f"vexport bench {self.name}", daemon=True
        )
        try:
            with _no_interrupt():
                process.start()
                self._process = process
        finally:
            theirs.close()  # else the pipe would stay open when the worker dies

    @property
    def _said_in(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "stderr"

    def _pickled(self, what: object) -> bytes | None:
        if self.failure is not None:
            return None
        try:
            return pickle.dumps(what)
        except Exception as error:  # pickle's own, TypeError, AttributeError, or whatever an object's method raises
            self._fail("failed", f"it cannot be sent to a process of its own: {in_words(error)}")
            return None

    def _ask(self, question: str, argument: Any, timeout_s: float) -> Any:
        """The answer; None where there is none, now or before."""
        if self.failure is not None:
            return None
        try:
            if self._process is None:
                self._start()
        except OSError as error:  # no processes, files, memory or disk left
            self._fail(*_classify(f"no process could be started: {in_words(error)}"))
            return None
        assert self._pipe is not None, "it was started"
        self._asked = True
        try:
            self._pipe.send((question, argument, timeout_s))
            if not self._has_answered(timeout_s):
                self._fail("hung", f"hung: no answer for {timeout_s:.0f} s")
                return None
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._fail(*self._how_it_ended())
            return None
        self._asked = False
        if kind == "error":
            self._fail(*_classify(answer))
            return None
        return answer

    def _has_answered(self, timeout_s: float) -> bool:
        """Wait for an answer, or the end.

        Raises:
            EOFError: it ended without one. Children that it leaves behind may hold the pipe open; so its end is looked
                for as well.
        """
        assert self._pipe is not None, "it was started"
        end = time.monotonic() + timeout_s
        while not self._pipe.poll(min(LOOK_S, max(0.0, end - time.monotonic()))):
            if self._process.exitcode is not None and not self._pipe.poll():
                raise EOFError
            if time.monotonic() >= end:
                return False
        return True

    def _take(self, answer: tuple[dict[str, Any], Waiting] | None) -> None:
        if answer is None:
            return
        self._samples, self.waiting = Samples.from_json(answer[0]), answer[1]
        if self._samples.error is not None:
            self._fail(*_classify(self._samples.error))

    def _how_it_ended(self) -> tuple[Kind, str]:
        _join(self._process, CLOSE_S)
        code = self._process.exitcode
        if code is None:
            return "crashed", "crashed: it closed its pipe"
        if code >= 0:
            return "crashed", f"crashed: it ended with exit code {code}"
        named = {int(one): one.name for one in signal.Signals}.get(-code, "")
        if -code == getattr(signal, "SIGKILL", None):  # what Linux sends where memory runs out
            return "out of memory", f"crashed: signal {-code} (out of memory?)"
        return "crashed", f"crashed: signal {-code} ({named})"

    def _fail(self, kind: Kind, text: str) -> None:
        if kind == "hung" and hasattr(signal, "SIGABRT"):
            with contextlib.suppress(OSError):
                os.kill(self._process.pid, signal.SIGABRT)  # faulthandler writes where it hangs, and it ends
                _join(self._process, TRACE_S)
        self.failure = Failure(kind, text, _tail(self._said_in) if self._folder else ())
        self.close()


def run_alone(name: str, work: Callable[[], Any], timeout_s: float) -> tuple[Any, Failure | None]:
    """Call something in a process that ends afterwards: its memory, threads and GPU context are then gone.

    Args:
        name: For reports.
        work: Picklable, and so is what it gives.
        timeout_s: When it counts as hung.

    Returns:
        What it gave, and why it gave nothing.
    """
    worker = Worker(name, _nothing, Clock())
    try:
        return worker.run(work, timeout_s), worker.failure
    finally:
        worker.close()


def _join(process: Any, timeout_s: float) -> None:
    """Wait for the end of a process. `join` alone would wait for its children too, which hold what it waits for."""
    end = time.monotonic() + timeout_s
    while process.exitcode is None and time.monotonic() < end:
        process.join(0.05)


def _nothing() -> Opened:
    return Opened(lambda: None)


def _classify(text: str) -> tuple[Kind, str]:
    """An error that the worker told, in words."""
    if text.startswith("MemoryError") or any(sign in text.lower() for sign in _NO_MEMORY):
        return "out of memory", f"out of memory: {text}"
    return "failed", text


def _tail(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as stream:
            stream.seek(0, io.SEEK_END)
            stream.seek(max(0, stream.tell() - 4 * TAIL_LINES * TAIL_WIDTH))
            lines = stream.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    kept: list[str] = []
    native = elsewhere = False
    for line in lines:
        # After a crash in native code Python lists the stack of each thread, innermost call first, then its extension
        # modules. The thread that crashed is called the current one.
        native = native or line.startswith("Fatal Python error")
        if native and line.startswith(("Thread 0x", "Current thread 0x")):
            elsewhere = line.startswith("Thread")
        if elsewhere:
            continue
        is_outer = native and line.startswith("  File ") and sum(one.startswith("  File ") for one in kept) >= FRAMES
        if line.strip() and not is_outer and not (native and line.startswith("Extension modules")):
            kept.append(line[:TAIL_WIDTH])
    return tuple(kept[-TAIL_LINES:])


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Processes started in this block never see Ctrl-C, which a terminal sends to all: only the parent answers it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # when it is first needed it would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
