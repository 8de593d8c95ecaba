"""Candidates in processes of their own: turns, and what a crash, a hang or a lack of memory costs."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vexport.bench.clock import Clock, Recorder, Samples, WarmUp
from vexport.bench.nvml import GpuState
from vexport.bench.scheduler import take_turns
from vexport.bench.watch import Reading
from vexport.bench.worker import Opened, Timeouts, Worker, run_alone
from vexport.bench.worker_process import Beside

CLOCK = Clock(warmup_s=0.0, duration_s=0.06, least_count=6, rounds=3, settle_s=0.0)
QUICK = Timeouts(open_s=60, answer_s=20)


@dataclass(frozen=True)
class Acting:
    """Opens a candidate that sleeps a millisecond, and does something else from its n-th call on.

    Args:
        act: `crash`, `hang`, `kill`, `memory`, `raise`, `exit` or nothing.
        after: Calls before that.
        log: A file to which every call adds the worker's process id.
    """

    act: str = ""
    after: int = 0
    log: Path | None = None

    def __call__(self) -> Opened:
        calls = 0

        def call() -> None:
            nonlocal calls
            calls += 1
            if self.log is not None:
                with self.log.open("a") as stream:
                    stream.write(f"{os.getpid()}\n")
            time.sleep(0.001)
            if calls > self.after:
                self._act()

        return Opened(call, {"pid": os.getpid(), "stdin": "closed"})

    def _act(self) -> None:
        if self.act in ("crash", "kill"):
            print("the last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGABRT if self.act == "crash" else signal.SIGKILL)
        if self.act == "hang":
            time.sleep(600)
        if self.act == "memory":
            raise MemoryError
        if self.act == "raise":
            raise RuntimeError("CUDA error: out of memory\nmore")
        if self.act == "exit":
            os._exit(7)


@dataclass(frozen=True)
class Unopenable:
    """An opener that fails."""

    def __call__(self) -> Opened:
        print("printed, not for the parent")
        raise ValueError("no such kernel")


def measured(*workers: Worker) -> dict[str, Samples]:
    try:
        for worker in workers:
            worker.open()
        return take_turns(workers, rounds=CLOCK.rounds).samples
    finally:
        for worker in workers:
            worker.close()


def test_workers_take_turns_in_processes_of_their_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    workers = [Worker(name, Acting(log=log), CLOCK, timeouts=QUICK) for name in ("one", "two")]
    found = measured(*workers)
    pids = {worker.facts["pid"] for worker in workers}
    assert len(pids) == 2
    assert os.getpid() not in pids
    for samples in found.values():
        assert samples.error is None
        assert len(samples.rounds_ns) == 3
        assert all(len(part) >= 2 for part in samples.rounds_ns)
        assert 1.0 <= samples.median_ms < 50
        assert len(samples.conditions) == 3, "each worker watches its own turns"
        assert samples.overhead_ns > 0
    said = [int(line) for line in log.read_text().splitlines()]
    blocks = [pid for index, pid in enumerate(said) if index == 0 or pid != said[index - 1]]
    assert 4 <= len(blocks) <= 8, "warm-ups, then three rounds of two turns each"
    assert all(worker.waiting.wall_s > 0 for worker in workers)
    assert all(worker.pid is None for worker in workers), "nothing is left running"


@pytest.mark.parametrize(
    ("act", "kind", "text"),
    [
        ("crash", "crashed", "crashed: signal 6 (SIGABRT)"),
        ("kill", "out of memory", "crashed: signal 9 (out of memory?)"),
        ("memory", "out of memory", "out of memory: MemoryError"),
        ("raise", "out of memory", "out of memory: RuntimeError: CUDA error: out of memory"),
        ("exit", "crashed", "crashed: it ended with exit code 7"),
    ],
)
def test_a_failure_costs_one_worker_and_what_was_measured_stays(act: str, kind: str, text: str) -> None:
    bad = Worker("bad", Acting(act, after=1 + CLOCK.least_count), CLOCK, timeouts=QUICK)
    good = Worker("good", Acting(), CLOCK, timeouts=QUICK)
    found = measured(bad, good)
    assert bad.failure is not None
    assert (bad.failure.kind, bad.failure.text) == (kind, text)
    assert found["bad"].error == text
    assert found["good"].error is None
    assert len(found["good"].rounds_ns) == 3
    if act in ("crash", "kill"):
        assert "the last words" in bad.failure.stderr


def test_rounds_before_a_crash_are_kept() -> None:
    """Turns of 20 ms: about 20 calls each, the crash comes in the second or third."""
    bad = Worker("bad", Acting("crash", after=30), CLOCK, timeouts=QUICK)
    found = measured(bad)["bad"]
    assert found.error is not None
    assert 1 <= len(found.rounds_ns) <= 2
    assert found.warm_up == replace(found.warm_up, calls=1) if isinstance(found.warm_up, WarmUp) else False


def test_a_hang_is_killed() -> None:
    worker = Worker("bad", Acting("hang"), CLOCK, timeouts=replace(QUICK, answer_s=0.3))
    worker.open()
    pid = worker.pid
    worker.warm_up()
    assert worker.failure is not None
    assert (worker.failure.kind, worker.error) == ("hung", "hung: no answer for 4 s")
    assert pid is not None
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_cannot_be_opened_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    worker = Worker("bad", Unopenable(), CLOCK, timeouts=QUICK)
    assert measured(worker)["bad"].error == "ValueError: no such kernel"
    assert worker.failure is not None
    assert "printed, not for the parent" in worker.failure.stderr
    assert capfd.readouterr().out == ""


def test_a_waiting_worker_takes_no_core() -> None:
    worker = Worker("one", Acting(), CLOCK, timeouts=QUICK)
    worker.open()
    try:
        worker.take_turn()
        before = worker.waiting
        time.sleep(0.5)
        worker.take_turn()
        waited = worker.waiting.wall_s - before.wall_s
        assert waited >= 0.5
        assert worker.waiting.cpu_s - before.cpu_s < 0.05 * waited
    finally:
        worker.close()


def test_a_worker_in_the_middle_of_a_turn_is_ended_at_once() -> None:
    """As Ctrl-C in the parent does."""
    worker = Worker("one", Acting("hang", after=1), CLOCK, timeouts=QUICK)
    worker.open()
    pid = worker.pid
    assert pid is not None
    assert worker._pipe is not None
    worker._asked = True
    worker._pipe.send(("turn", 0))
    before = time.monotonic()
    worker.close()
    assert time.monotonic() - before < 8
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_ctrl_c_does_not_reach_the_worker() -> None:
    worker = Worker("one", Acting(), CLOCK, timeouts=QUICK)
    worker.open()
    try:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
        worker.take_turn()
        assert worker.error is None
    finally:
        worker.close()


def test_work_in_a_process_that_ends() -> None:
    found, failure = run_alone("pid", os.getpid, 60)
    assert failure is None
    assert found != os.getpid()
    found, failure = run_alone("abort", os.abort, 60)
    assert found is None
    assert failure is not None
    assert failure.kind == "crashed"


def test_our_own_processes_are_no_load_on_the_gpu() -> None:
    class Fixed:
        def read(self) -> Reading:
            return Reading(0, 0, gpu=GpuState(processes=4))

    watch = Beside(Fixed())
    counts = []
    for watch.count in (0, 2, 3, 9):
        gpu = watch.read().gpu
        assert gpu is not None
        counts.append(gpu.processes)
    assert counts == [4, 2, 1, 1]


def test_recorders_take_turns_too() -> None:
    """The same scheduler, in this process; the order is drawn and each round has everybody."""
    members = [Recorder(CLOCK, name, lambda: time.sleep(0.001)) for name in "abc"]
    told: list[tuple[str, int, int]] = []
    run = take_turns(members, rounds=3, seed=1, progress=lambda *said: told.append(said))
    assert [sorted(names) for names in run.order] == [list("abc")] * 3
    assert len(set(run.order)) > 1
    assert [done for _, done, _ in told] == list(range(13))
    assert run.complete
