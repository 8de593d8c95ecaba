"""What Lightning must not do in somebody else's process: chatter, and swallow interrupts."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

CHATTY = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "timm.models")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's tips, its advice on workers and timm's remarks; errors still come through."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def interrupts_pass() -> Iterator[None]:
    """Let KeyboardInterrupt through, where Lightning exits with code 1 and ignores further SIGINTs.

    Raises:
        SystemExit: on SIGTERM, with the code that says so; Lightning's own has none, and would pass for success.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        if error.code is None:
            raise SystemExit(128 + signal.SIGTERM) from error
        raise
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)
