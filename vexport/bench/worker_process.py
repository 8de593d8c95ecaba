"""The other end of `vexport.bench.worker`: what runs in a worker's process and answers the parent's questions."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vexport.bench.clock import Candidate, Clock, Recorder, in_words
from vexport.bench.watch import Reading, Watch, Watcher
from vexport.errors import VexportError

LEAVE_S = 60.0  # beyond the time that the parent waits for an answer: by then nobody does
SAID_BYTES, KEPT_BYTES = 1 << 20, 1 << 16  # of standard output and error; the end is kept of more
# Of 1000. Where memory runs out, Linux is to take the worker that asks for it: not one that waits, nor the parent.
RESTING_SCORE, WORKING_SCORE = 300, 600
_OOM_SCORE = Path("/proc/self/oom_score_adj")


@dataclass(frozen=True)
class Opened:
    """What an opener brings.

    Args:
        candidate: What to time.
        facts: What it says of itself, as JSON can hold it.
        close: Lets go of it.
    """

    candidate: Candidate
    facts: Mapping[str, Any] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None


Opener = Callable[[], Opened]


@dataclass(frozen=True)
class Waiting:
    """What a worker cost the others while they had their turns.

    Args:
        wall_s: How long it waited, all told.
        cpu_s: Processor time that it took meanwhile.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def to_json(self) -> dict[str, float]:
        return asdict(self)


class Beside:
    """A watch that does not count our own other processes among those that load the GPU."""

    def __init__(self, watch: Watcher) -> None:
        self.watch, self.count = watch, 0

    def read(self) -> Reading:
        found = self.watch.read()
        if found.gpu is None or found.gpu.processes is None:
            return found
        return replace(found, gpu=replace(found.gpu, processes=max(1, found.gpu.processes - self.count)))


class _Server:
    """Answers the parent's questions."""

    def __init__(self) -> None:
        self._opened: Opened | None = None
        self._recorder: Recorder | None = None
        self._watch: Beside | None = None
        self._waiting = Waiting()
        self._since = (time.monotonic(), time.process_time())

    def answer(self, question: str, argument: Any) -> Any:
        if question == "run":
            return pickle.dumps(pickle.loads(argument)())
        if question == "open":
            return self._open(*argument)
        assert self._recorder is not None, "it is opened first"
        assert self._watch is not None, "so is this"
        if question == "warm up":
            self._recorder.warm_up()
        else:
            wall_s, cpu_s = self._since
            self._waiting = Waiting(
                self._waiting.wall_s + time.monotonic() - wall_s, self._waiting.cpu_s + time.process_time() - cpu_s
            )
            self._watch.count = argument
            self._recorder.take_turn()
        return self._recorder.samples().to_json(), self._waiting

    def rest(self) -> None:
        """From now on it waits."""
        self._since = (time.monotonic(), time.process_time())

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def _open(self, opener: bytes, how: Mapping[str, Any], name: str, gpu: bool) -> dict[str, Any]:
        self._opened = pickle.loads(opener)()
        device = None
        if gpu:
            from vexport.bench.nvml import open_gpu

            device, _ = open_gpu()
        self._watch = Beside(Watch(device))
        self._recorder = Recorder(Clock(**how, watch=self._watch), name, self._opened.candidate)
        facts: dict[str, Any] = json.loads(json.dumps(dict(self._opened.facts)))  # as a resumed benchmark reads them
        return facts


def serve(pipe: Connection, said_in: str) -> None:
    """Answer until the parent says close, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _redirect(said_in)
    _no_core_files()
    faulthandler.enable()  # a crash in native code says where
    threading.Thread(target=_leave_with_parent, args=(said_in,), daemon=True).start()
    server, own_score = _Server(), _oom_score()
    while True:
        _set_oom_score(max(own_score, RESTING_SCORE))
        try:
            question, argument, timeout_s = pipe.recv()
        except (EOFError, OSError):
            _forget(said_in)
            return
        if question == "close":
            server.close()
            return
        _set_oom_score(max(own_score, WORKING_SCORE))
        # For a hang in native code that never lets Python's threads run, with nobody left to end it.
        faulthandler.dump_traceback_later(timeout_s + LEAVE_S, exit=True)
        try:
            answer = pickle.dumps(("ok", server.answer(question, argument)))
        except Exception as error:
            answer = pickle.dumps(("error", _said(error)))
        faulthandler.cancel_dump_traceback_later()
        _shorten(said_in)
        try:
            pipe.send_bytes(answer)
        except OSError:
            _forget(said_in)
            return
        server.rest()


def _leave_with_parent(said_in: str) -> None:
    """End at once when the parent is gone, in the middle of a turn too: it may have been killed.

    The thread waits in the kernel and takes no time from what is measured.
    """
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        _forget(said_in)
        os._exit(1)


def _forget(said_in: str) -> None:
    """Remove what the parent would have removed."""
    shutil.rmtree(Path(said_in).parent, ignore_errors=True)


def _no_core_files() -> None:
    """A crash is expected here: no file as large as the memory for each."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _oom_score() -> int:
    try:
        return int(_OOM_SCORE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _set_oom_score(score: int) -> None:
    with contextlib.suppress(OSError):
        _OOM_SCORE.write_text(str(score), encoding="ascii")


def _shorten(said_in: str) -> None:
    """Of a library that writes a line per call keep the end, not gigabytes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    with contextlib.suppress(OSError), Path(said_in).open("r+b") as file:
        if file.seek(0, os.SEEK_END) > SAID_BYTES:
            file.seek(-KEPT_BYTES, os.SEEK_END)
            kept = file.read()
            file.truncate(0)
            file.seek(0)
            file.write(kept)


def _redirect(said_in: str) -> None:
    """Standard output and error, of native libraries too, into a file: the parent's are not theirs."""
    target = os.open(said_in, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        if stream is not None:
            stream.flush()
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(line_buffering=True, errors="backslashreplace")  # a crash loses what is in a buffer
        os.dup2(target, descriptor)
    os.close(target)


def _said(error: Exception) -> str:
    if isinstance(error, VexportError):
        return f"{error.message}: {error.details[0]}" if error.details else error.message
    return in_words(error)
