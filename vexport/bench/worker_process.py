"""The other end of `vexport.bench.worker`: what runs in a worker's process and answers the parent's questions."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

from vexport.bench.clock import Candidate, Clock, Recorder, in_words
from vexport.bench.watch import Reading, Watch, Watcher
from vexport.errors import VexportError


@dataclass(frozen=True)
class Opened:
    """What an opener brings.

    Args:
        candidate: What to time.
        facts: What it says of itself, as plain values.
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
        return dict(self._opened.facts)


def serve(pipe: Connection, said_in: str) -> None:
    """Answer until the parent says close, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _redirect(said_in)
    faulthandler.enable()  # a crash in native code says where
    server = _Server()
    while True:
        try:
            question, argument = pipe.recv()
        except (EOFError, OSError):
            return
        if question == "close":
            server.close()
            return
        try:
            answer = ("ok", server.answer(question, argument))
        except Exception as error:
            answer = ("error", _said(error))
        pipe.send(answer)
        server.rest()


def _redirect(said_in: str) -> None:
    """Standard output and error, of native libraries too, into a file: the parent's are not theirs."""
    target = os.open(said_in, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        if stream is not None:
            stream.flush()
        os.dup2(target, descriptor)
    os.close(target)


def _said(error: Exception) -> str:
    if isinstance(error, VexportError):
        return f"{error.message}: {error.details[0]}" if error.details else error.message
    return in_words(error)
