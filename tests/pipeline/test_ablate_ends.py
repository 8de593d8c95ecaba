"""How runs end: one that computes is not hung, one whose parent is gone ends with it; and signals that end all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest

from vexport.pipeline.ablate_ends import signals_end
from vexport.pipeline.ablate_process import Failure, do_runs
from vexport.pipeline.ablate_run import Job

from . import ablate_works as works

TESTS = Path(__file__).parents[1]
PARENT = """
from pathlib import Path
from vexport.pipeline.ablate_process import do_runs
from vexport.pipeline.ablate_run import Job
from pipeline import ablate_works as works

def show(running, waiting):
    if running[0].step.isdigit():
        print(running[0].step, flush=True)

folder = Path({folder!r})
do_runs([Job("n0", 0, folder, folder, (), "")], works.stubborn, at_once=1, patience_s=600,
        on_end=lambda *_: None, on_tick=show)
"""


def do(tmp_path: Path, work: Any, *runs: str, patience_s: float = 4.0) -> dict[str, Any]:
    """How runs ended, all of them at once."""
    ended: dict[str, Any] = {}
    jobs = [Job(run, 0, tmp_path / run, tmp_path / "none.yaml", (), "") for run in runs]
    for job in jobs:
        job.folder.mkdir()
    do_runs(
        jobs, work, at_once=len(jobs), patience_s=patience_s, on_end=lambda job, how, _: ended.update({job.run: how})
    )
    return ended


def test_a_run_that_computes_is_not_hung_but_in_an_epoch(tmp_path: Path) -> None:
    ended = do(tmp_path, works.busy, "trained", "exporting", "in an epoch")
    assert isinstance(ended["trained"], dict), ended
    assert isinstance(ended["exporting"], dict), ended
    assert isinstance(ended["in an epoch"], Failure), ended
    assert ended["in an epoch"].kind == "hung"


def test_a_run_that_tells_nothing_new_is_not_hung(tmp_path: Path) -> None:
    """As training does while it validates."""
    ended = do(tmp_path, works.validating, "n0")
    assert isinstance(ended["n0"], dict), ended


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_a_run_starts_stops_that_run(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    start = SpawnProcess.start

    def start_and_hear(process: SpawnProcess) -> None:
        start(process)
        assert process.pid is not None
        started.append(process.pid)
        signal.raise_signal(signal.Signals[name])  # SIGINT waits until the block that holds it back ends

    monkeypatch.setattr(SpawnProcess, "start", start_and_hear)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)), signals_end():
            do(tmp_path, works.obedient, "n0", "n1", patience_s=300)
        assert len(started) == 1, "the other one does not start"
        assert not _lives(started[0])
    finally:
        for pid in started:
            if _lives(pid):
                os.kill(pid, signal.SIGKILL)


def test_a_signal_before_a_run_started_leaves_nothing_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpawnProcess, "start", lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as caught, signals_end():
        do(tmp_path, works.obedient, "n0", patience_s=300)
    assert caught.value.code == 128 + signal.SIGTERM


def test_a_run_that_cannot_be_started_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = SpawnProcess.start

    def start_some(process: SpawnProcess) -> None:
        if process.name.endswith("n1.s0"):
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        if process.name.endswith("n2.s0"):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        start(process)

    monkeypatch.setattr(SpawnProcess, "start", start_some)
    ended = do(tmp_path, works.by_name, "n0", "n1", "n2", patience_s=300)
    assert ended["n0"]["top1"] == 50.0
    assert ended["n1"].kind == "failed"
    assert "cannot be started: [Errno" in ended["n1"].text
    assert ended["n2"].kind == "out of memory"


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not end processes with their parent")
def test_a_run_ends_with_its_parent(tmp_path: Path) -> None:
    """Killed without a word; the run neither listens to SIGTERM nor has anything to tell."""
    command = [sys.executable, "-c", PARENT.format(folder=str(tmp_path))]
    parent = subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    run = int(parent.stdout.readline())
    try:
        os.kill(run, 0)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 30
        while _lives(run) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _lives(run)
    finally:
        parent.stdout.close()
        if _lives(run):
            os.kill(run, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended; whoever took it over has not looked yet


@pytest.fixture
def default() -> Iterator[None]:
    """SIGHUP does what it does without us, whatever runs the tests."""
    if not hasattr(signal, "SIGHUP"):
        pytest.skip("has no such signal")
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("default")
def test_the_first_signal_ends_and_the_others_wait() -> None:
    with pytest.raises(SystemExit) as caught, signals_end():
        _send_thrice()
    assert caught.value.code == 128 + signal.SIGHUP
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def _send_thrice() -> None:
    try:
        os.kill(os.getpid(), signal.SIGHUP)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)


@pytest.mark.usefixtures("default")
def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    with signals_end():
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)


def test_signals_are_left_alone_in_other_threads() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    def look() -> None:
        with signals_end():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]
