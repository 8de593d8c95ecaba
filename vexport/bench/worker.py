"""A candidate in a process of its own: a crash, a hang or a lack of memory takes that process and nothing else.

The parent asks one question at a time over a pipe, and the worker answers: open, warm up, take a turn, close. Samples
come back after every turn, so that what was measured before a crash is kept. Between two questions the worker waits in
a read of the pipe: it holds memory, but no core; what processor time it takes meanwhile is measured (`Waiting`).
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import pickle
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from vexport.bench.clock import PARTS_SHARE, Clock, Samples
from vexport.bench.worker_process import Opened, Opener, Waiting, serve

__all__ = ["Failure", "Opened", "Opener", "Timeouts", "Waiting", "Worker", "run_alone"]

TAIL_LINES, TAIL_WIDTH, FRAMES = 12, 300, 3  # of what a worker wrote to standard error
CLOSE_S = 10.0  # until a worker that does not end by itself is killed
# How libraries say that memory ran out; PyTorch, CUDA, ONNX Runtime, oneDNN, TensorRT.
_NO_MEMORY = ("out of memory", "outofmemory", "bad_alloc", "bad allocation", "failed to allocate", "alloc_failed",
              "cannot allocate memory", "could not allocate", "no memory left")  # fmt: skip

Kind = Literal["crashed", "hung", "out of memory", "failed"]


@dataclass(frozen=True)
class Timeouts:
    """How long to wait before a worker counts as hung.

    Args:
        open_s: For opening: kernels may be compiled then.
        answer_s: For any other answer, beyond the time that the clock measures for.
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

    A failure of any kind is kept in `failure`; whatever is asked after it does nothing.

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
        self._start()
        # The worker has its own time source and its own watch.
        left_out = ("now_ns", "watch")
        how = {one.name: getattr(self.clock, one.name) for one in fields(self.clock) if one.name not in left_out}
        answer = self._ask("open", (pickle.dumps(self._opener), how, self.name, self.gpu), self.timeouts.open_s)
        self.facts = answer or {}

    def warm_up(self) -> None:
        """Call it until it is stable."""
        clock = self.clock
        self._take(self._ask("warm up", None, max(clock.warmup_s, clock.warmup_most_s) + self.timeouts.answer_s))

    def take_turn(self) -> None:
        """Take one round of samples."""
        clock = self.clock
        turn_s = clock.duration_s / clock.rounds * (1 + PARTS_SHARE) + clock.settle_s
        self._take(self._ask("turn", self.beside, turn_s + self.timeouts.answer_s))

    def run(self, work: Callable[[], Any], timeout_s: float) -> Any:
        """What a picklable callable gives, called in the worker; None where that fails."""
        if self._process is None:
            self._start()
        answer = self._ask("run", pickle.dumps(work), timeout_s)
        return None if answer is None else pickle.loads(answer)

    def samples(self) -> Samples:
        """What was taken so far, with what it failed with."""
        found = self._samples or Samples(self.name, ())
        return replace(found, error=self.error) if self.failure else found

    def close(self) -> None:
        """End the process, by force where it does not answer. What was taken stays."""
        process, pipe = self._process, self._pipe
        if process is None or pipe is None:
            return
        if self.failure is None and not self._asked:
            with contextlib.suppress(OSError, ValueError):
                pipe.send(("close", None))
                process.join(CLOSE_S)
        if process.is_alive():
            process.kill()
            process.join(CLOSE_S)
        pipe.close()
        process.close()
        self._process = self._pipe = None
        if self._folder is not None:
            self._folder.cleanup()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks, and CUDA refuses it
        self._folder = tempfile.TemporaryDirectory(prefix="vexport-bench-")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(theirs, str(self._said_in)), name=f"vexport bench {self.name}", daemon=True
        )
        with _no_interrupt():
            self._process.start()
        theirs.close()  # else the pipe would stay open when the worker dies

    @property
    def _said_in(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "stderr"

    def _ask(self, question: str, argument: Any, timeout_s: float) -> Any:
        """The answer; None where there is none, now or before."""
        if self.failure is not None or self._pipe is None:
            return None
        self._asked = True
        try:
            self._pipe.send((question, argument))
            if not self._pipe.poll(timeout_s):
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

    def _take(self, answer: tuple[dict[str, Any], Waiting] | None) -> None:
        if answer is None:
            return
        self._samples, self.waiting = Samples.from_json(answer[0]), answer[1]
        if self._samples.error is not None:
            self._fail(*_classify(self._samples.error))

    def _how_it_ended(self) -> tuple[Kind, str]:
        self._process.join(CLOSE_S)
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
        if kind == "hung" and self._process.is_alive():
            self._process.kill()
            self._process.join(CLOSE_S)
        self.failure = Failure(kind, text, _tail(self._said_in))


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
    native = False
    for line in lines:
        # After a crash in native code Python lists its stack, innermost call first, then its extension modules.
        native = native or line.startswith("Fatal Python error")
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
