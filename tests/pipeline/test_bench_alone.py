"""Work in a process of its own: refusals arrive as they were, crashes cost the work, Ctrl-C leaves nothing behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from vexport.artifacts import Graph
from vexport.errors import InputError, VexportError
from vexport.pipeline.bench_alone import Apart
from vexport.pipeline.bench_artifacts import Made
from vexport.pipeline.bench_make import AskBackend, Done, MakeArtifact, Maker
from vexport.workspace import Workspace, stage


@dataclass(frozen=True)
class Add:
    a: int
    b: int

    def __call__(self) -> tuple[int, int]:
        return self.a + self.b, os.getpid()


def refuse() -> None:
    raise InputError("no such thing", details=["a reason", "another"], hint="give another")


def crash() -> None:
    os.abort()


def fail() -> None:
    raise KeyError("lost")


def sleep() -> None:
    time.sleep(60)


@dataclass(frozen=True)
class WriteForever:
    """Has something half written when Ctrl-C comes."""

    target: Path

    def __call__(self) -> None:
        with stage(self.target) as staging:
            staging.path.write_text("half")
            while True:
                time.sleep(0.02)


@pytest.mark.parametrize("own_process", [True, False])
def test_it_gives_what_the_work_gives_and_refuses_as_it_does(own_process: bool) -> None:
    with Apart("test", own_process=own_process) as apart:
        three, pid = apart.call("adding", Add(1, 2), 60)
        assert three == 3
        assert (pid == os.getpid()) is not own_process
        assert apart.call("adding", Add(1, 2), 60)[1] == pid, "one process for all"
        with pytest.raises(InputError, match="no such thing") as caught:
            apart.call("refusing", refuse, 60)
        assert (caught.value.details, caught.value.hint) == (("a reason", "another"), "give another")
        assert apart.call("adding", Add(1, 2), 60)[1] == pid, "a refusal is no crash"
        with pytest.raises(VexportError, match="failing: KeyError: 'lost'"):
            apart.call("failing", fail, 60)


def test_a_crash_costs_the_work_and_the_next_process_goes_on() -> None:
    with Apart("test") as apart:
        with pytest.raises(VexportError, match=r"crashing: crashed: signal 6 \(SIGABRT\)") as caught:
            apart.call("crashing", crash, 60)
        assert any("crash" in line for line in caught.value.details), "where it crashed"
        assert apart.call("adding", Add(1, 2), 60)[0] == 3
        with pytest.raises(VexportError, match="sleeping: hung: no answer for 1 s"):
            apart.call("sleeping", sleep, 1)
        assert apart.call("adding", Add(2, 2), 60)[0] == 4


def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path) -> None:
    """Only this process sees Ctrl-C; the other one is asked to end, and clears up."""
    target = tmp_path / "slow.onnx"

    def interrupt() -> None:
        while not list(tmp_path.glob(".vexport-*/slow.onnx")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=interrupt, daemon=True)
    presser.start()
    with Apart("test") as apart, pytest.raises(KeyboardInterrupt):
        apart.call("writing", WriteForever(target), 60)
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Request(MakeArtifact):
    """Says in a file that it was tried; what is called `crash` crashes."""

    def __call__(self, on_step: object = None) -> Done:
        with (self.root / "tried").open("a") as stream:
            stream.write(f"{self.network} {os.getpid()}\n")
        if self.network == "crash":
            os.abort()
        return Done(Made(None, self.network, "ab", None, "random"), {}, anew=self.network == "new")

    def before(self) -> MakeArtifact | None:
        return None


def tried(root: Path) -> list[list[str]]:
    return [line.split() for line in (root / "tried").read_text().splitlines()]


def request(root: Path, network: str) -> Request:
    return Request(root, "graph", network, "fp32", (3, 8, 8))


def test_each_is_made_once_and_so_is_what_fails(tmp_path: Path) -> None:
    maker = Maker(Workspace(tmp_path))
    for _ in range(2):
        assert maker.make(request(tmp_path, "old"), "old").made.name == "old"
        with pytest.raises(VexportError, match="making crash: crashed"):
            maker.make(request(tmp_path, "crash"), "crash")
    maker.close()
    assert [name for name, _ in tried(tmp_path)] == ["old", "crash"]


def test_memory_is_given_back_once_something_was_made(tmp_path: Path) -> None:
    maker = Maker(Workspace(tmp_path))
    for name in ("old", "older", "new", "oldest"):
        maker.make(request(tmp_path, name), name)
    maker.close()
    old, older, new, oldest = (pid for _, pid in tried(tmp_path))
    assert old == older == new, "what is there already needs no process of its own"
    assert oldest != new


def test_what_an_artifact_is_made_from_is_made_first() -> None:
    engine = MakeArtifact(Path(), "engine", "resnet50", "int8", (3, 224, 224), 8, "tensorrt")
    int8 = engine.before()
    assert int8 is not None
    assert (int8.kind, int8.precision, int8.batch, int8.runtime) == ("graph", "int8", None, None)
    fp32 = int8.before()
    assert fp32 is not None
    assert (fp32.kind, fp32.precision, fp32.before()) == ("graph", "fp32", None)
    assert MakeArtifact(Path(), "checkpoint", "resnet50", "fp32", (3, 224, 224)).before() is None


def test_a_question_that_crashes_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker(Workspace(tmp_path))
    assert maker.ask(AskBackend("onnxruntime"), "asking") is None
    assert "asking: crashed" in str(maker.ask(crash, "asking"))  # type: ignore[arg-type]


def test_a_real_artifact_is_made_apart(tmp_path: Path) -> None:
    """Nothing of it comes into this process but the answer."""
    workspace = Workspace(tmp_path / "out")
    told: list[str] = []
    maker = Maker(workspace, lambda text, _share: told.append(text))
    done = maker.make(MakeArtifact(workspace.root, "checkpoint", "resnet18", "fp32", (3, 32, 32)), "resnet18")
    maker.close()
    assert (done.made.path, done.made.weights, done.anew) == (None, "random", False)
    assert done.counted["depth"] == 18
    assert told == ["making resnet18"]
    assert workspace.newest(Graph) is None
