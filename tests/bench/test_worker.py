"""Candidates in processes of their own: turns, and what a crash, a hang or a lack of memory costs."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
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
        act: `crash`, `hang`, `kill`, `memory`, `raise`, `exit`, `leave a child`, `hold the lock` or nothing.
        after: Calls before that.
        log: A file to which every call adds the worker's process id.
        call_s: What a call takes.
    """

    act: str = ""
    after: int = 0
    log: Path | None = None
    call_s: float = 0.001

    def __call__(self) -> Opened:
        calls = 0

        def call() -> None:
            nonlocal calls
            calls += 1
            if self.log is not None:
                with self.log.open("a") as stream:
                    stream.write(f"{os.getpid()}\n")
            time.sleep(self.call_s)
            if calls > self.after:
                self._act()

        return Opened(call, {"pid": os.getpid(), "stdin": sys.stdin.read(), "shape": (1, None)})

    def _act(self) -> None:
        if self.act in ("crash", "kill"):
            print("the last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGABRT if self.act == "crash" else signal.SIGKILL)
        if self.act == "hang":
            time.sleep(600)
        if self.act == "hold the lock":
            ctypes.PyDLL(None).sleep(600)  # and no other thread of Python's runs
        if self.act == "memory":
            raise MemoryError
        if self.act == "raise":
            raise RuntimeError("CUDA error: out of memory\nmore")
        if self.act == "leave a child" and os.fork() == 0:
            time.sleep(8)  # with all that was open, the pipe too
        if self.act in ("exit", "leave a child"):
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
    for worker in workers:
        assert worker.facts["stdin"] == "", "the terminal is not theirs"
        assert worker.facts["shape"] == [1, None], "as JSON has it"
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
    assert any("in _act" in line for line in worker.failure.stderr), "it says where"
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    worker.close()


def test_slow_calls_are_no_hang() -> None:
    """Ten calls of 50 ms in a turn of 20 ms: the least count is what was asked for."""
    clock = replace(CLOCK, least_count=30)
    worker = Worker("slow", Acting(call_s=0.05), clock, timeouts=replace(QUICK, answer_s=0.1))
    worker.open()
    try:
        worker._take(worker._ask("warm up", None, 20))
        worker.take_turn()
        assert worker.error is None
        assert worker.samples().count == 10
    finally:
        worker.close()


@pytest.mark.parametrize("act", ["memory", "raise"])
def test_a_candidate_that_failed_holds_no_memory(act: str) -> None:
    worker = Worker("bad", Acting(act), CLOCK, timeouts=QUICK)
    worker.open()
    pid = worker.pid
    assert pid is not None
    worker.warm_up()
    assert worker.error is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    worker.take_turn()
    assert worker.run(os.getpid, 5) is None, "nothing is started again"
    assert worker.pid is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_the_end_of_a_worker_counts_though_its_children_hold_the_pipe() -> None:
    worker = Worker("bad", Acting("leave a child"), CLOCK, timeouts=replace(QUICK, answer_s=1))
    worker.open()
    worker.warm_up()
    assert worker.error == "crashed: it ended with exit code 7"


class Unpicklable:
    """Refuses to be sent."""

    def __call__(self) -> Opened:
        return Opened(lambda: None)

    def __reduce__(self) -> str:
        raise RuntimeError("it holds a device")


def unreadable() -> object:
    """What only this worker knows."""

    class Local:
        pass

    return Local()


def test_what_cannot_be_sent_costs_one_worker() -> None:
    worker = Worker("bad", Unpicklable(), CLOCK, timeouts=QUICK)
    worker.open()
    assert worker.error == "it cannot be sent to a process of its own: RuntimeError: it holds a device"
    worker.close()
    found, failure = run_alone("local", lambda: 1, 20)
    assert found is None
    assert failure is not None
    assert failure.text.startswith("it cannot be sent to a process of its own: ")
    found, failure = run_alone("local", unreadable, 20)
    assert found is None
    assert failure is not None
    assert (failure.kind, "Local" in failure.text) == ("failed", True)


@dataclass(frozen=True)
class OddFacts:
    """An opener whose facts are no plain values."""

    def __call__(self) -> Opened:
        return Opened(lambda: None, {"device": threading.Lock()})


def test_facts_that_json_cannot_hold_say_so() -> None:
    worker = Worker("bad", OddFacts(), CLOCK, timeouts=QUICK)
    worker.open()
    assert worker.error == "TypeError: Object of type lock is not JSON serializable"
    worker.close()


def test_no_room_for_a_process_costs_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    worker = Worker("bad", Acting(), CLOCK, timeouts=QUICK)
    worker.open()
    assert worker.error == "no process could be started: OSError: [Errno 28] No space left on device"
    monkeypatch.undo()
    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", full)
    worker = Worker("bad", Acting(), CLOCK, timeouts=QUICK)
    worker.open()
    assert worker.failure is not None
    assert worker._pipe is None
    worker.close()


ORPHANED = """
import sys
from dataclasses import dataclass, replace
from bench.test_worker import CLOCK, Acting
from vexport.bench import worker_process
from vexport.bench.worker import Opened, Timeouts, Worker

@dataclass(frozen=True)
class Impatient(Acting):
    def __call__(self) -> Opened:
        worker_process.LEAVE_S = 1
        return super().__call__()

if __name__ == "__main__":
    clock = replace(CLOCK, warmup_most_s=0)
    worker = Worker("one", Impatient({act!r}), clock, timeouts=Timeouts(60, 2))
    worker.open()
    print(worker.pid, worker._folder.name, flush=True)
    if {act!r}:
        worker.warm_up()
    sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a system without signals")
@pytest.mark.parametrize(
    "act", ["", "hang", "hold the lock"], ids=["waiting", "in a call that hangs", "in native code that hangs"]
)
def test_a_worker_ends_with_a_parent_that_was_killed(act: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(ORPHANED.format(act=act), encoding="utf-8")
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split()
        time.sleep(0.5)  # until it hangs
        os.kill(int(pid), 0)
        parent.kill()
    deadline = time.monotonic() + 10
    while is_running(int(pid)) or (Path(folder).exists() and act != "hold the lock"):
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that nobody has waited for yet has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_what_is_printed_before_a_crash_is_not_lost_in_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    worker = Worker("bad", Unopenable(), CLOCK, timeouts=QUICK)
    worker.open()
    assert worker.failure is not None
    assert "printed, not for the parent" in worker.failure.stderr
    found, failure = run_alone("abort", print_and_abort, 20)
    assert found is None
    assert failure is not None
    assert "said to standard output" in failure.stderr
    worker.close()


def print_and_abort() -> None:
    print("said to standard output")
    os.abort()


def test_of_a_chatty_library_the_end_is_kept() -> None:
    worker = Worker("chatty", Acting(), CLOCK, timeouts=QUICK)
    try:
        assert worker.run(chatter, 20) is None
        assert worker._said_in.stat().st_size < 100_000
        worker.run(os.abort, 20)
        assert worker.failure is not None
        assert any(line.startswith("line 149999") for line in worker.failure.stderr)
    finally:
        worker.close()


def chatter() -> None:
    for index in range(150_000):
        print(f"line {index}")


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="Linux prefers processes by a score")
def test_where_memory_runs_out_workers_go_before_the_parent() -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    worker = Worker("one", Acting(), CLOCK, timeouts=QUICK)
    try:
        working = worker.run(oom_score, 20)
        assert worker.pid is not None
        resting = int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text())
    finally:
        worker.close()
    assert own <= resting <= working
    assert working >= 600


def oom_score() -> int:
    return int(Path("/proc/self/oom_score_adj").read_text())


def test_a_crash_in_a_thread_says_where() -> None:
    """Of several threads the stack of the one that crashed is told, not that of whichever is listed first."""
    found, failure = run_alone("thread", abort_in_a_thread, 20)
    assert found is None
    assert failure is not None
    assert any("in abort_here" in line for line in failure.stderr)
    assert not any("_leave_with_parent" in line for line in failure.stderr)


def abort_here() -> None:
    os.abort()


def abort_in_a_thread() -> None:
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
    one = threading.Thread(target=abort_here)
    one.start()
    one.join()


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
    worker._pipe.send(("turn", 0, 20))
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


def test_the_order_told_is_of_the_turns_taken() -> None:
    def broken() -> None:
        raise RuntimeError

    members = [Recorder(CLOCK, "a", lambda: None), Recorder(CLOCK, "b", broken)]
    assert take_turns(members, rounds=2).order == (("a",), ("a",))
