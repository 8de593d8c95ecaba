"""How an ablation and its runs end: by a signal, with the parent, or for want of a sign of life."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from vexport.errors import EXIT_INTERRUPTED

ALIVE = ("alive",)
BEAT_S = 1.0
# Of a core. A process that waits wakes up now and then to look whether there is something to do.
LEAST_WORK = 0.01
_PR_SET_PDEATHSIG = 1


@contextmanager
def signals_end() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise SystemExit in this block, with the code that shells give them.

    The first one counts: a terminal that closes sends several, and what is stopped and written then takes a moment.
    One that is ignored, as under `nohup`, stays ignored. Does nothing outside of the main thread.
    """
    before: dict[int, Any] = {}
    heard = False

    def end(number: int, _frame: object) -> None:
        nonlocal heard
        if not heard:
            heard = True
            raise SystemExit(128 + number)

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")):
                # None: not set by Python, so that it could not be put back.
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.getsignal(number)
                    signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """On Linux, have this process killed when the one that started it ends, however that ends.

    It would go on beside the next try, which writes into the same folder. Checkpoints are whole at any time.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it ended before that
        sys.exit(EXIT_INTERRUPTED)


class Line:
    """A process's line to its parent, for several threads.

    Args:
        pipe: To it.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()

    def tell(self, told: tuple[Any, ...]) -> None:
        """Tell the parent something.

        Raises:
            KeyboardInterrupt: it is gone.
        """
        try:
            with self._lock:
                self._pipe.send(told)
        except OSError as error:
            raise KeyboardInterrupt("the parent is gone") from error


@contextmanager
def signs_of_life(tell: Callable[[tuple[Any, ...]], None]) -> Iterator[None]:
    """Tell `ALIVE` from time to time while this process computes; one that waits in vain tells nothing.

    Importing, merging and exporting tell nothing themselves. Epochs do, so in them it does not count: a process that
    waits for a GPU that hangs spins. What workers of this process do is not counted: it takes what they read, which is
    work of its own.
    """
    ended = threading.Event()

    def watch() -> None:
        before = 0.0
        while not ended.wait(BEAT_S):
            now = time.process_time() - time.thread_time()  # this thread's own waking is no work
            if now - before >= LEAST_WORK * BEAT_S:
                try:
                    tell(ALIVE)
                except KeyboardInterrupt:
                    return  # the run finds out by itself
            before = now

    threading.Thread(target=watch, name="signs of life", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
